"""Where models and data sets come from: a local folder, `hub.root`, an installed package, the hub and its cache.

`hub.root` is a folder with `models/ORG/NAME` and `datasets/ORG/NAME` in the hub's own layout. It is looked at first; the
hub is asked only for what is not there, and asked once whether it answers, before anything is loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dynarank.errors import UserError, check_name

log = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
PACKAGE = "package:"
DTYPES = ("float32", "bfloat16")
WEIGHTS = "model.safetensors"
WELL_KNOWN = "FacebookAI/roberta-base"
"""A model that the hub has for certain."""
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass
class HubConfig:
    """Where to look before the hub."""

    root: str | None = None
    """A folder with models/ORG/NAME and datasets/ORG/NAME, looked at first; null: the hub and its cache alone."""


@dataclass
class ModelConfig:
    """The pretrained model to adapt."""

    name: str = "${basename:${.path}}"
    """A short name for folders and tables; the path's last part unless given."""
    path: str = "???"
    """A hub id, a local folder, or package:MODULE/FOLDER for one that an installed package carries."""
    revision: str | None = None
    """The hub's branch, tag or commit; null: its main branch."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Read it first, and pin it by model.revision=COMMIT."""
    sha256: str | None = None
    """If set, what model.safetensors must hash to."""
    targets: list[str] | None = None
    """Linear layers to adapt: name suffixes or regular expressions; null: those known for the architecture."""
    lr_scale: float = 1.0
    """Factor on the task's learning rate (the tasks' are for RoBERTa-base)."""
    dtype: str = "float32"
    """Of the frozen base weights: float32, or bfloat16 at half the memory. What trains is float32 in either."""

    def __post_init__(self) -> None:
        check_name("model.name", self.name)
        if self.targets is not None and not self.targets:
            raise ValueError(
                "model.targets = []: name at least one linear layer, or null for the known ones"
            )
        if not self.lr_scale > 0:
            raise ValueError(f"model.lr_scale = {self.lr_scale}: must be above 0")
        if self.dtype not in DTYPES:
            raise ValueError(f"model.dtype = {self.dtype!r}: must be one of {', '.join(DTYPES)}")


class HubSilent(UserError):
    """Something is nowhere locally, and the hub does not answer."""

    def __init__(self, kind: str, field: str, path: str, root: str | None, reason: str) -> None:
        self.kind, self.field, self.path, self.root, self.reason = kind, field, path, root, reason
        super().__init__(hub_silent_message([self]))


def hub_silent_message(errors: Sequence[HubSilent]) -> str:
    """One message for all that is missing, with the remedies once."""
    what = " and ".join(f"{error.field} = {error.path}" for error in errors)
    where = (
        f"under hub.root ({errors[0].root})" if errors[0].root else "locally (hub.root is not set)"
    )
    places = " and ".join(f"DIR/{error.kind}/{error.path}" for error in errors)
    return (
        f"{what}: not found {where}, not in the hub's cache, and the hub does not answer ({errors[0].reason}).\n"
        f"  With a local copy: hub.root=DIR or DYNARANK_HUB=DIR, with {places} in the hub's layout,\n"
        f"                     or {' '.join(f'{error.field}=FOLDER' for error in errors)}\n"
        "  With no network:   python train.py experiment=quickstart"
    )


@dataclass(frozen=True)
class Source:
    """Something that `from_pretrained` or `load_dataset` can open."""

    path: str
    """A folder, or a hub id."""
    recorded: str
    """What an adapter says its base is: the hub id where there is one, else the folder."""


def locate(
    kind: str, field: str, path: str, root: str | None, revision: str | None = None
) -> Source:
    """Find a model or data set (`kind`: "models" or "datasets") without loading it.

    Raises:
        UserError: not there, and the hub does not answer or does not have it; says what to do. `field` names the
            setting that the path came from.
    """
    if path.startswith(PACKAGE):
        folder = _in_package(field, path)
        return Source(str(folder), str(folder))
    if root is not None and not Path(root).expanduser().is_dir():
        raise UserError(
            f"hub.root = {root}: no such folder. Give one with models/ or datasets/ in it, or null"
        )
    if root is not None and (found := Path(root).expanduser() / kind / path).is_dir():
        return Source(str(found.resolve()), path)
    if (local := Path(path).expanduser()).is_dir():
        return Source(str(local.resolve()), str(local.resolve()))
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"{field} = {path}: no such folder")
    _ask_hub(kind, field, path, root, revision)
    return Source(path, path)


def warn_of_remote_code(config: ModelConfig, source: Source) -> None:
    """Say in the log whose code will run, and whether it can change under the user's feet."""
    if not config.trust_remote_code:
        return
    pinned = Path(source.path).is_dir() or COMMIT.fullmatch(config.revision or "") is not None
    loose = f" It is not pinned: whoever changes {config.revision or 'main'} there changes it. Set model.revision=COMMIT"
    log.warning(
        "model.trust_remote_code = true: Python code from %s runs here.%s",
        source.path,
        "" if pinned else loose,
    )


def _in_package(field: str, path: str) -> Path:
    module, _, inside = path.removeprefix(PACKAGE).partition("/")
    if (
        not module.isidentifier() or ".." in Path(inside).parts
    ):  # a dotted name's parent would be imported
        raise UserError(
            f"{field} = {path}: must be package:MODULE/FOLDER, a top-level module and a folder inside it"
        )
    spec = importlib.util.find_spec(module)  # finds without importing the package
    if spec is None or not spec.submodule_search_locations:
        name = module.replace("_", "-")
        raise UserError(
            f"{field} = {path}: that package is not installed. Install it: pip install --no-deps {name}"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / inside
    if not folder.is_dir():
        raise UserError(f"{field} = {path}: the package is installed, but has no folder {inside!r}")
    return folder


def check_sha256(config: ModelConfig, source: Source) -> None:
    """Refuse weights whose hash is not the expected one, or that cannot be checked (`UserError`)."""
    if config.sha256 is None:
        return
    folder = Path(source.path)
    weights = folder / WEIGHTS if folder.is_dir() else _fetch(source.path, WEIGHTS, config.revision)
    if weights is None or not weights.is_file():
        raise UserError(
            f"model.sha256 = {config.sha256}: there is no {WEIGHTS} in {source.path} to check. Set it to null"
        )
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != config.sha256:
        raise UserError(
            f"model.sha256 = {config.sha256}: {weights} hashes to {digest}, so these are not the expected weights. "
            "Reinstall the package, or set model.sha256=null if you trust them"
        )


def _fetch(path: str, name: str, revision: str | None) -> Path | None:
    """A file of a model's on the hub, from its cache where it is there; None where it cannot be had."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(path, name, revision=revision))
    except Exception:  # every client and proxy has its own way of not connecting
        return None


def _ask_hub(kind: str, field: str, path: str, root: str | None, revision: str | None) -> None:
    """Return if the hub, or its cache, has it; `UserError` otherwise."""
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
    failure = _offline_reason()
    if failure is None:
        api = HfApi()
        info = api.model_info if kind == "models" else api.dataset_info
        try:
            info(path, revision=revision, timeout=PROBE_SECONDS)
            return
        except GatedRepoError:
            raise UserError(
                f"{field} = {path}: the hub asks for its terms to be accepted. Log in: hf auth login"
            ) from None
        except RevisionNotFoundError:
            raise UserError(
                f"{field} = {path}: the hub has no revision {revision!r} of it"
            ) from None
        except RepositoryNotFoundError:
            raise UserError(
                f"{field} = {path}: the hub has none of that name, or it is private (hf auth login)"
            ) from None
        except Exception as error:  # every client and proxy has its own way of not connecting
            failure = f"{type(error).__name__}: {error}".splitlines()[0]
            _go_offline(failure)
    if not _cached(kind, path, revision):
        raise HubSilent(kind, field, path, root, failure)


def why_silent() -> str | None:
    """Why the hub does not answer, which it is asked once and briefly; None where it does."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    reason = _offline_reason()
    if reason is None:
        try:
            HfApi().model_info(WELL_KNOWN, timeout=PROBE_SECONDS)
        except HfHubHTTPError:  # it answers, if only to refuse
            return None
        except Exception as error:  # every client and proxy has its own way of not connecting
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            _go_offline(reason)
    return reason


_offline_because: list[str] = []


@cache
def _stated_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _offline_reason() -> str | None:
    if _offline_because:
        return _offline_because[0]
    return "HF_HUB_OFFLINE is set" if _stated_offline() else None


def _go_offline(reason: str) -> None:
    """Spare every later call its own retries: a hub that did not answer once is not asked again in this process."""
    _stated_offline()
    _offline_because.append(reason)
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            sys.modules[module].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def _cached(kind: str, path: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    if kind == "models":
        return isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str)
    from datasets import config

    return (Path(config.HF_DATASETS_CACHE) / path.replace("/", "___")).is_dir()
