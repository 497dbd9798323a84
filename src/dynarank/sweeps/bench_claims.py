"""Who runs which cell of a bench, so that several processes may work on one file side by side.

A claim is a small file in a folder beside the bench's, which names the process that runs the cell.
It counts for as long as that process lives; what a killed one had claimed is free again. Claims are
made, and cells appended, while a lock is held.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from dynarank.sweeps.bench import Cell, append_cell, read_cells
from dynarank.sweeps.liveness import is_alive, process_facts


class Claims:
    """The claims on the cells of one file.

    Args:
        file: the bench's csv.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._folder = file.with_name(f".{file.name}.claims")
        self._lock = file.with_name(f".{file.name}.lock")

    def take(self, wanted: Iterable[Cell]) -> Cell | None:
        """Claim the first cell that can be run and that no living process runs.

        To be called while the lock is held.

        Args:
            wanted: in order.
        """
        for cell in wanted:
            record = self._record(cell)
            # A record that is not there names no process, as one that is damaged.
            if is_alive(record):
                continue
            self._folder.mkdir(parents=True, exist_ok=True)
            facts = process_facts(os.getpid())
            owner = {"pid": os.getpid(), "host": socket.gethostname()}
            if facts is not None:
                # By it another process that is given the same number later is told apart.
                owner["started"] = facts.started
            record.write_text(json.dumps(owner))
            return cell
        return None

    def touch(self, cell: Cell) -> None:
        """Tell other machines that the process lives."""
        self._record(cell).touch()

    def finish(self, cell: Cell) -> None:
        """Append a cell with what it found, and give its claim up."""
        with self.locked():
            # In this order, so that a kill in between leaves a dead claim and loses no cell.
            append_cell(self._file, cell)
            self._drop(cell)

    def release(self, cell: Cell) -> None:
        """Give a claim up, if it still stands."""
        with self.locked():
            self._drop(cell)

    def _drop(self, cell: Cell) -> None:
        self._record(cell).unlink(missing_ok=True)
        with suppress(OSError):  # others are at work
            self._folder.rmdir()

    @contextmanager
    def locked(self) -> Iterator[list[Cell]]:
        """Hold the file, which no other process then reads or writes, and give its cells."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # A lock of its own in each call: then threads of one process wait for each other, too.
        with FileLock(self._lock):
            yield read_cells(self._file)

    def _record(self, cell: Cell) -> Path:
        # A key holds characters that not every file's name may.
        name = hashlib.sha256(repr(cell.key).encode()).hexdigest()[:16]
        return self._folder / f"{name}.json"
