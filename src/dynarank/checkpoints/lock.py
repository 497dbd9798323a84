"""One run to a folder: a second one refuses, and a killed one leaves no lock behind."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynarank.errors import UserError
from dynarank.training.distributed import is_first

log = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder. Raises `UserError` where another process does, naming it.

    By a record lock: the system drops it with the process, however that ends, and worker processes do not inherit it.
    Of a run's several processes only the first takes it.
    """
    if not is_first():
        yield
        return
    with (folder / "run.lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise UserError(
                f"output_dir = {folder}: another run is at work there ({file.read().strip()}). "
                "Wait for it, or choose another: hydra.run.dir=DIR"
            ) from None
        except OSError as error:
            log.warning(
                "%s: its file system knows no locks (%s); see that no other run works there",
                folder,
                error.strerror,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
        file.truncate(0)
