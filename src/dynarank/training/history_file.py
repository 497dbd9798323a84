"""metrics.csv: a run's history, whole at every moment and restored from the checkpoint.

Lightning's own logger rewrites the file in place when a column is added, and removes an earlier one
before it writes. A kill between the two loses rows.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger
from torch import Tensor

from dynarank.durable_files import write_text
from dynarank.run_folder import HISTORY

log = logging.getLogger(__name__)

Row = dict[str, Any]


class HistoryFile(Logger):
    """Write what is logged to metrics.csv, a row a call, a column a name, in alphabetical order.

    Only the first rank writes. A checkpoint holds `text()`, and a resumed run takes it back by
    `restore`, so that the rows are those of the checkpoint whatever became of the file.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / HISTORY
        self._columns: list[str] = []
        self._rows: list[Row] = []
        self._rows_on_disk = 0
        self._bytes_on_disk = -1
        """Of the file when it was last written; -1 before."""

    @property
    def name(self) -> str:
        """Return the name by which Lightning tells loggers apart."""
        return "history"

    @property
    def version(self) -> str:
        """Return the version, which Lightning asks every logger for."""
        return ""

    @property
    def save_dir(self) -> str:
        """Return the run's folder."""
        return str(self.path.parent)

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Ignore settings: they stand in the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Add a row. Lightning calls `save` after it."""
        row: Row = {}
        for name, value in metrics.items():
            row[name] = value.item() if isinstance(value, Tensor) else value
        if "epoch" in row:
            row["epoch"] = int(row["epoch"])  # Lightning makes a float of all that is logged
        row["step"] = len(self._rows) if step is None else step
        self._rows.append(row)

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are not on the disk yet.

        Rows are appended where the columns are as they were. Otherwise the whole file is written
        beside its place and renamed.
        """
        new_rows = self._rows[self._rows_on_disk :]
        if not new_rows:
            return
        columns = set(self._columns).union(*new_rows)
        grown = len(columns) > len(self._columns)
        self._columns = sorted(columns)
        if grown or self._changed_on_disk():
            write_text(self.path, self.text())
        else:
            # A kill may cut the last line short. A resumed run writes the whole file anew.
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerows(new_rows)
                file.flush()
                os.fsync(file.fileno())
        self._note_written()

    def _changed_on_disk(self) -> bool:
        """Return whether the file is not as this logger left it."""
        return not self.path.is_file() or self.path.stat().st_size != self._bytes_on_disk

    def _note_written(self) -> None:
        self._rows_on_disk = len(self._rows)
        self._bytes_on_disk = self.path.stat().st_size

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left, when Lightning's work is over."""
        self.save()

    def text(self) -> str:
        """Return the whole file's content."""
        # Rows that are not written yet may bring new columns.
        columns = set(self._columns).union(*self._rows)
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, sorted(columns))
        writer.writeheader()
        writer.writerows(self._rows)
        return buffer.getvalue()

    @rank_zero_only
    def restore(self, text: str) -> None:
        """Go on after the rows of a `text()`, and say where the file does not hold them."""
        # The values stay texts, so that they are written again as the very bytes that they were.
        self._rows = _parse(text)
        self._columns = sorted(set().union(*self._rows))
        if not self._rows:
            # The checkpoint is older than the first row: all rows in the file are of later steps.
            self.path.unlink(missing_ok=True)
            return
        if self.path.is_file() and not self._holds_rows():
            log.warning(
                "%s was cut short or changed since the checkpoint: its rows are restored from it",
                self.path,
            )
        write_text(self.path, self.text())
        self._note_written()

    def _holds_rows(self) -> bool:
        """Return whether the file begins with the restored rows. It may hold more of them."""
        try:
            saved = _parse(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, csv.Error):
            return False
        return saved[: len(self._rows)] == self._rows


def _parse(text: str) -> list[Row]:
    """Return the rows of a file's content, without the columns that a row leaves open."""
    rows = []
    for row in csv.DictReader(io.StringIO(text, newline="")):
        # "" is an open column of a whole line, and None one that the line does not reach.
        rows.append({name: value for name, value in row.items() if value not in ("", None)})
    return rows
