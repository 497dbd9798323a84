"""Whether this process can reach the hub: it is asked briefly, and after a failure no more."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from dynarank.errors import UserError, kind_and_first_line

log = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
WELL_KNOWN = "FacebookAI/roberta-base"
"""A model that the hub has for certain."""


@dataclass
class Connection:
    """What this process knows of its way to the hub."""

    failure: str | None = None
    """Why the hub could not be reached; None as long as it has not failed."""

    def why_offline(self) -> str | None:
        """Return why the hub is not to be asked; None where it may be."""
        if self.failure is not None:
            return self.failure
        return "HF_HUB_OFFLINE is set" if stated_offline() else None

    def give_up(self, error: Exception) -> str:
        """Remember the failure and set the libraries offline; return the failure in one line."""
        self.failure = kind_and_first_line(error)
        set_libraries_offline(self.failure)
        return self.failure


CONNECTION = Connection()
"""The connection of this process."""


def stated_offline() -> bool:
    """Return whether the user has set HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def set_libraries_offline(reason: str) -> None:
    """Set HF_HUB_OFFLINE for this process and its children, so that no library tries again.

    Without this each later call of transformers or datasets repeats its own retries, for minutes.
    """
    log.info("the hub does not answer (%s): this process sets HF_HUB_OFFLINE=1", reason)
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Those that are imported already have read the environment.
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            sys.modules[module].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def why_silent() -> str | None:
    """Return why the hub does not answer, asking it once; None where it does."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    reason = CONNECTION.why_offline()
    if reason is not None:
        return reason
    try:
        HfApi().model_info(WELL_KNOWN, timeout=PROBE_SECONDS)
    except HfHubHTTPError:  # it answers, if only to refuse
        return None
    except Exception as error:  # every client and proxy has its own way of not connecting
        return CONNECTION.give_up(error)
    return None


def ask_hub(kind: str, field: str, path: str, revision: str | None) -> str | None:
    """Return None if the hub has a model or data set; the reason where the hub cannot be asked.

    Args:
        kind: "models" or "datasets".
        field: the setting that the path came from, for errors.

    Raises:
        UserError: the path cannot be an id on the hub, or the hub says that it has no such thing,
            not that revision of it, or not for this user.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(path)
    except HFValidationError:
        raise UserError(
            f"{field} = {path}: there is no such folder, and no id on the hub is of that form"
        ) from None
    reason = CONNECTION.why_offline()
    if reason is not None:
        return reason
    api = HfApi()
    get_info = api.model_info if kind == "models" else api.dataset_info
    try:
        get_info(path, revision=revision, timeout=PROBE_SECONDS)
    # It stands before RepositoryNotFoundError, of which it is a subclass.
    except GatedRepoError:
        raise UserError(
            f"{field} = {path}: the hub asks for its terms to be accepted. Log in: hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{field} = {path}: the hub has no revision {revision!r} of it") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{field} = {path}: the hub has none of that name, or it is private (hf auth login)"
        ) from None
    except Exception as error:  # every client and proxy has its own way of not connecting
        return CONNECTION.give_up(error)
    return None


def is_cached(kind: str, path: str, revision: str | None) -> bool:
    """Return whether the cache of this machine holds a model or data set of the hub."""
    from huggingface_hub import try_to_load_from_cache

    if kind == "models":
        # A mark may stand there, too, that the hub is known to lack the file: it is no text.
        return isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str)
    from datasets import config

    # datasets names a data set's folder so, and has no call that asks for it.
    return (Path(config.HF_DATASETS_CACHE) / path.replace("/", "___")).is_dir()


def fetch_file(path: str, name: str, revision: str | None) -> Path | None:
    """Return one file of a model on the hub, from the cache where it is there; None without it."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(path, name, revision=revision))
    except Exception:  # every client and proxy has its own way of not connecting
        return None
