"""Rows that predict and evaluate read and write: files, and standard input."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.commands.command_line import make_folder, refuse_existing, replaced_file
from dynarank.errors import UserError
from dynarank.run_folder import (
    CONFIG,
    FILES,
    HISTORY,
    LOCK_OWNER,
    METRICS,
    ORIGIN,
    RANK_HISTORY,
    RANKS,
    read_json,
)
from dynarank.settings import expand_user

if TYPE_CHECKING:
    from datasets import Dataset

STANDARD = "-"
"""Stands for standard input."""
FORMATS = ("csv", "tsv", "jsonl", "parquet")
NEEDED = (METRICS, HISTORY, RANKS, RANK_HISTORY, FILES, LOCK_OWNER)
"""Files of a run's that no output may replace, or stand in for before the run has ended."""


def check_input(path: str, form: str | None) -> None:
    """Raise `UserError` where there is no such input, before anything slow."""
    if path == STANDARD:
        if form is None:
            raise UserError(
                "--input -: standard input has no ending. Say what it holds: "
                f"--format {'|'.join(FORMATS)}"
            )
    elif form is not None:
        raise UserError(
            f"--format {form}: is for --input - alone; the format of a file is its ending"
        )
    elif not Path(expand_user(path)).exists():  # a folder of images is an input too
        raise UserError(f"--input {path}: there is no such file")


def check_output(path: Path, source: str, overwrite: bool, endings: Sequence[str]) -> None:
    """Raise `UserError` where the output cannot be written or must not be, before anything slow.

    Args:
        source: the command's input.
        endings: the endings that the output may have, with their dots.
    """
    if path.suffix not in endings:
        raise UserError(f"--output {path}: the ending must be one of {', '.join(endings)}")
    make_folder("--output", path.parent)
    inputs = () if source == STANDARD else (Path(expand_user(source)),)
    refuse_existing("--output", path, overwrite, inputs)
    _refuse_run_file(path)


def _refuse_run_file(path: Path) -> None:
    """Raise `UserError` where an output has the name of a file that a run or an adapter needs.

    `--overwrite` does not help: a run with scores in place of its results would be read as a run.
    """
    folder = path.resolve().parent
    is_run = (folder / FILES).is_file() or (folder / CONFIG).is_file()
    is_in_adapter = path.exists() and (folder / ORIGIN).is_file()
    is_of_run = is_run and path.name in (*NEEDED, *_recorded_names(folder))
    if is_in_adapter or is_of_run:
        raise UserError(f"--output {path}: is a file of a run's. Name another file")


def _recorded_names(folder: Path) -> list[str]:
    """Return the files that a run has recorded as its own; none where the record is damaged."""
    if not (folder / FILES).is_file():
        return []
    try:
        return list(read_json(folder / FILES)["files"])
    except (UserError, TypeError, KeyError):
        return []


def read_rows(path: str, form: str | None, read: Callable[[str, str], Dataset]) -> Dataset:
    """Return the rows of a file, or of standard input in the given format. Raises `UserError`.

    Args:
        read: reads what an option names at a path, as the run's task does.
    """
    if path != STANDARD:
        return read("--input", path)
    # Readers go by a file's ending and look at some files twice, which a stream does not allow.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"stdin.{form}"
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        try:
            return read("--input", str(copy))
        except UserError as error:
            # The user has named no file.
            raise UserError(str(error).replace(str(copy), STANDARD)) from None


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows to a file by its ending, whole or not at all. Raises `UserError`."""
    from dynarank.tasks.files import write_file

    with replaced_file(path) as temporary:
        try:
            write_file(temporary, rows)
        except UserError as error:
            # The user has named the output, and not the file beside it that is written first.
            raise UserError(str(error).replace(str(temporary), str(path))) from None
