"""A command that is refused leaves no folder behind: Hydra makes one before anything is checked."""

from __future__ import annotations

import contextlib
from pathlib import Path

from dynarank.run_folder import HYDRA, LOCK

HYDRA_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")
LOGS = "*.log"


def remove_refused_folder(folder: Path, since: float) -> bool:
    """Remove a folder in which lies nothing but what this command's Hydra wrote.

    Folders above it that become empty are removed too, up to the working folder.

    Args:
        folder: the run's.
        since: when this process began, in seconds as file systems count them. A folder with
            anything older, or of another name, is left as it is.

    Returns:
        whether it was removed.
    """
    settings = folder / HYDRA
    own = [settings / name for name in HYDRA_FILES]
    own += [folder / LOCK, *folder.glob(LOGS)]
    present = set(folder.rglob("*")) - {settings}
    # An empty folder may be anybody's, so it stays.
    if not present:
        return False
    others = present - set(own)
    if others or any(file.stat().st_mtime < since for file in present):
        return False
    for file in present:
        file.unlink()
    with contextlib.suppress(OSError):
        settings.rmdir()
    _remove_empty(folder)
    return True


def _remove_empty(folder: Path) -> None:
    """Remove an empty folder below the working folder, and those above it that become empty."""
    here = Path.cwd()
    folder = folder.resolve()
    with contextlib.suppress(OSError):
        # rmdir refuses a folder that holds anything, which ends the loop.
        while folder != here:
            folder.rmdir()
            if here not in folder.parents:
                return
            folder = folder.parent
