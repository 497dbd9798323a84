"""Which files of a folder are a run's own: only those are ever replaced or removed, each by name.

A run claims its folder before it writes into it: `run_files.json` says that the folder is a run's,
and names every file that the run leaves, with its digest. Files that others keep in the folder, in
`adapter/` or `checkpoints/` too, stay.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dynarank.checkpoints.storage import MANIFESTS, UNFINISHED, WEIGHTS, newest_valid
from dynarank.config.schema import TrainConfig
from dynarank.durable_files import TEMPORARY, file_sha256, write_json, write_text
from dynarank.errors import UserError
from dynarank.run_folder import (
    ADAPTER,
    CHECKPOINTS,
    ERROR,
    FILES,
    HISTORY,
    HYDRA,
    LOCK,
    LOCK_OWNER,
    METRICS,
    OUTPUT,
    OVER_BUDGET,
    RANK_HISTORY,
    RANKS,
    RUNNING,
    TENSORBOARD,
    TRACKER,
    read_json,
)
from dynarank.training.rank_map import RANK_MAP_FILES

LAUNCHERS = (
    HYDRA,
    LOCK,
    LOCK_OWNER,
    ERROR,
    OUTPUT,
    RUNNING,
    TRACKER,
    TENSORBOARD,
    "output-rank*.txt",
    "*.log",
    ".writable",  # the trial file of `check_output_dir`, of another rank
    ".DS_Store",
    ".nfs*",  # what NFS makes of a file that is removed while it is open
)
"""What may lie in the folder before the run begins: written by Hydra, a sweep or the system."""
RESULTS = (METRICS, HISTORY, RANKS, RANK_HISTORY, *RANK_MAP_FILES)
"""A run's files at the top of its folder, whatever its task."""
STAGING = (f"{ADAPTER}{TEMPORARY}", f"{OVER_BUDGET}{TEMPORARY}")
"""Folders in which an adapter is written before its files are moved."""
CHECKPOINT_FILES = (WEIGHTS, MANIFESTS, UNFINISHED)
SURROGATE = re.compile("[\\ud800-\\udfff]")
LISTED = 3
"""Names that an error lists."""


@dataclass
class OwnFiles:
    """What `run_files.json` holds."""

    files: dict[str, str] = field(default_factory=dict)
    """The sha256 of what the run left, by name; empty for a file that is being written."""
    settings: dict[str, str] = field(default_factory=dict)
    """The content of Hydra's files: a command that is refused has overwritten them by then."""


def read_own_files(folder: Path) -> OwnFiles | None:
    """Return the record of a run's folder; None where there is none, or it is damaged."""
    if not (folder / FILES).is_file():
        return None
    try:
        content = read_json(folder / FILES)
        own = OwnFiles(files=dict(content["files"]), settings=dict(content["settings"]))
    except (UserError, KeyError, TypeError, ValueError):
        return None
    texts = [*own.files, *own.files.values(), *own.settings, *own.settings.values()]
    return own if all(_is_name_or_text(text) for text in texts) else None


def _is_name_or_text(value: object) -> bool:
    """Return whether a value can name a file or fill one: no NUL, no half of a surrogate pair."""
    return isinstance(value, str) and "\0" not in value and not SURROGATE.search(value)


def _write_own_files(folder: Path, own: OwnFiles) -> None:
    write_json(folder / FILES, asdict(own))


def check_folder(folder: Path, config: TrainConfig) -> None:
    """Raise `UserError` where a folder holds what is not a run's.

    Files that others keep beside a run's are allowed by `resume.shared_folder`. Files that a run
    would overwrite, and that no run wrote, are always refused.
    """
    _check_kinds(folder)
    # A whole checkpoint tells as much, where run_files.json is lost or damaged.
    if read_own_files(folder) is not None or newest_valid(folder / CHECKPOINTS)[0] is not None:
        return
    taken = [name for name in _taken_names(folder) if (folder / name).exists()]
    if taken:
        raise UserError(
            f"output_dir = {folder}: holds {_listed(taken)}, which no run is known to have written "
            "there, and which this one would overwrite. Choose another: hydra.run.dir=DIR, or move "
            "it away"
        )
    others = sorted(entry.name for entry in folder.iterdir() if not _is_expected(entry))
    if others and not config.resume.shared_folder:
        raise UserError(
            f"output_dir = {folder}: holds files that are not a run's: {_listed(others)}. Choose "
            "another: hydra.run.dir=DIR, or train among them with resume.shared_folder=true, which "
            "removes none of them"
        )


def _check_kinds(folder: Path) -> None:
    """Raise `UserError` where a folder has the name of a file of a run's, or a file a folder's."""
    for name in (*RESULTS, FILES):
        if (folder / name).is_dir():
            raise UserError(
                f"output_dir = {folder}: {name} is a folder there, and a run writes a file of that "
                "name. Move it away, or choose another: hydra.run.dir=DIR"
            )
    for name in (ADAPTER, CHECKPOINTS, *STAGING):
        if (folder / name).is_file():
            raise UserError(
                f"output_dir = {folder}: holds {name}, a file where a run makes a folder. Move it "
                "away, or choose another: hydra.run.dir=DIR"
            )


def _taken_names(folder: Path) -> list[str]:
    """Return the names that a run writes and that something has already."""
    names = list(RESULTS)
    for subfolder in (ADAPTER, OVER_BUDGET, *STAGING):
        names.extend(_files_below(folder, subfolder))
    if (folder / CHECKPOINTS).is_file():
        names.append(CHECKPOINTS)
    for pattern in CHECKPOINT_FILES:
        names.extend(f"{CHECKPOINTS}/{path.name}" for path in (folder / CHECKPOINTS).glob(pattern))
    return names


def _files_below(folder: Path, subfolder: str) -> list[str]:
    """Return the files of a subfolder by their names relative to the folder."""
    below = folder / subfolder
    if not below.is_dir():
        return [subfolder] if below.exists() else []
    return [path.relative_to(folder).as_posix() for path in below.rglob("*") if path.is_file()]


def _is_expected(entry: Path) -> bool:
    """Return whether an entry may lie in a folder that a run begins in."""
    if entry.name in (ADAPTER, OVER_BUDGET, CHECKPOINTS):
        return entry.is_dir() and not any(entry.iterdir())
    names = [*LAUNCHERS, *_hydra_subfolder()]
    return any(fnmatch.fnmatch(entry.name, name) for name in names)


def _hydra_subfolder() -> list[str]:
    """Return where Hydra has written the configuration, if that is not `.hydra`."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():  # a run of the library's, which no command began
        return []
    subfolder = HydraConfig.get().output_subdir
    return [] if subfolder is None else [str(subfolder)]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def claim_folder(folder: Path) -> None:
    """Record that the folder is a run's, and what Hydra has written there for this run."""
    own = read_own_files(folder) or OwnFiles()
    own.settings = {}
    for path in sorted((folder / HYDRA).glob("*.yaml")):
        own.settings[f"{HYDRA}/{path.name}"] = path.read_text(encoding="utf-8")
    _write_own_files(folder, own)


def restore_settings(folder: Path) -> None:
    """Give a run its own configuration back, after a command that was refused."""
    own = read_own_files(folder)
    for name, text in own.settings.items() if own is not None else ():
        path = folder / name
        # A damaged record must not name another run's settings.
        if path.parent == folder / HYDRA and path.suffix == ".yaml" and path.parent.is_dir():
            write_text(path, text)


def remove_earlier_run(folder: Path) -> None:
    """Remove every file that an earlier run left and that would be taken for this one's."""
    own = read_own_files(folder) or OwnFiles()
    # RESULTS begins with metrics.json, so that a kill in between leaves no run that seems finished.
    remove_files(folder, [*RESULTS, *own.files])
    checkpoints = folder / CHECKPOINTS
    for pattern in CHECKPOINT_FILES:
        for path in checkpoints.glob(pattern):
            path.unlink(missing_ok=True)
    _remove_empty(checkpoints)
    for subfolder in STAGING:
        shutil.rmtree(folder / subfolder, ignore_errors=True)
    # Last: until then, the record names what is left to remove.
    _write_own_files(folder, OwnFiles(settings=own.settings))


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove files of a folder by name, and each subfolder that this leaves empty."""
    for name in names:
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            continue  # a damaged record must not name what lies elsewhere
        if path.is_file():
            path.unlink()
        if path.parent != folder:
            _remove_empty(path.parent)


def _remove_empty(subfolder: Path) -> None:
    if subfolder.is_dir() and not any(subfolder.iterdir()):
        subfolder.rmdir()


def announce_files(folder: Path, names: Iterable[str]) -> None:
    """Record files that are about to be written, so that a kill leaves none that is nobody's."""
    own = read_own_files(folder) or OwnFiles()
    own.files |= dict.fromkeys(names, "")
    _write_own_files(folder, own)


def record_digests(folder: Path, texts: dict[str, str]) -> None:
    """Record the digest of every file that was announced, for `damaged_files`.

    Args:
        folder: the run's.
        texts: digests of files that are written after this, by name.
    """
    own = read_own_files(folder) or OwnFiles()
    for name in own.files:
        path = folder / name
        own.files[name] = file_sha256(path) if path.is_file() else ""
    own.files |= texts
    _write_own_files(folder, own)


def damaged_files(folder: Path) -> list[str]:
    """Return what a finished run left and is not there any more as it was."""
    own = read_own_files(folder)
    if own is None:
        return []
    damaged = []
    for name, digest in own.files.items():
        path = folder / name
        if digest and (not path.is_file() or file_sha256(path) != digest):
            damaged.append(name)
    return damaged
