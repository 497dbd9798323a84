"""Rows that predict and evaluate read and write: files, standard input, and standard output."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.commands.command_line import make_folder, refuse_existing, replaced_file
from dynarank.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

STANDARD = "-"
"""Stands for standard input, and for standard output."""
FORMATS = ("csv", "tsv", "jsonl", "parquet")


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
    elif not Path(path).expanduser().exists():  # a folder of images is an input too
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
    inputs = () if source == STANDARD else (Path(source).expanduser(),)
    refuse_existing("--output", path, overwrite, inputs)


def read_rows(path: str, form: str | None, read: Callable[[str, str], Dataset]) -> Dataset:
    """Return the rows of a file, or of standard input in the given format. Raises `UserError`.

    Args:
        read: reads what an option names at a path, as the run's task does.
    """
    if path != STANDARD:
        return read("--input", path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"stdin.{form}"
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        try:
            return read("--input", str(copy))
        except UserError as error:
            raise UserError(str(error).replace(str(copy), STANDARD)) from None


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows to a file by its ending, whole or not at all. Raises `UserError`."""
    from dynarank.tasks.files import write_file

    with replaced_file(path) as temporary:
        try:
            write_file(temporary, rows)
        except UserError as error:
            raise UserError(str(error).replace(str(temporary), str(path))) from None
