"""One run to a folder: a second one refuses, and a killed one leaves no lock behind."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dynarank.errors import UserError
from dynarank.run_folder import LOCK, LOCK_OWNER
from dynarank.training.distributed import is_first

log = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder while the context lasts.

    The system drops the lock with the process, however that ends. Of a run's several processes
    only the first takes it.

    Raises:
        UserError: another process holds the folder; the message names it.
    """
    if not is_first():
        yield
        return
    if (folder / LOCK).is_dir():
        raise UserError(
            f"output_dir = {folder}: {LOCK} is a folder there, and no run's lock. Move it away, or "
            "choose another: hydra.run.dir=DIR"
        )
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"output_dir = {folder}: another run is at work there ({_owner(folder)}). "
            "Wait for it, or choose another: hydra.run.dir=DIR"
        ) from None
    except OSError as error:
        log.warning(
            "%s: its file system knows no locks (%s); see that no other run works there",
            folder,
            error.strerror,
        )
    try:
        # The name is only a help to others: where it cannot be written, the lock still holds.
        with suppress(OSError):
            _write_owner(folder)
        yield
    finally:
        with suppress(OSError):
            # The lock's own file stays: the system's lock on it counts, not that it is there.
            (folder / LOCK_OWNER).unlink(missing_ok=True)
        lock.release()


def _write_owner(folder: Path) -> None:
    owner = {"process": os.getpid(), "host": socket.gethostname()}
    (folder / LOCK_OWNER).write_text(json.dumps(owner) + "\n")


def _owner(folder: Path) -> str:
    """Return which process holds the folder, as it noted itself."""
    try:
        owner = json.loads((folder / LOCK_OWNER).read_text())
        return f"process {owner['process']} on {owner['host']}"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "a process that left no name"
