"""The user's own data in a file: csv, tsv, json lines or parquet, checked as it is read.

Rows are counted from 0, without a header. Values of csv and tsv stay texts: what a column means is
the matter of its task.
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.durable_files import without_nan
from dynarank.errors import UserError, kind_and_first_line
from dynarank.settings import expand_user
from dynarank.tasks.delimited import read_csv, read_tsv, text_lines

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

Columns = dict[str, list[Any]]
LARGEST = 2**63
"""A whole number from this on has no type of its own in a data set."""
SHOWN = 80
"""Characters of a value that an error shows."""


def read_file(
    field: str,
    name: str,
    used: Collection[str] | None = None,
    reader: Callable[[Path], Columns] | None = None,
    more_endings: Sequence[str] = (),
) -> Dataset:
    """Return the rows of a file, by its ending.

    Args:
        field: the setting that named the file, for errors.
        name: the file's path; `~` means the home folder.
        used: the columns that are needed. Others are left out where their values are of no one
            type. None: all are needed.
        reader: what reads it, in place of the reader of its ending.
        more_endings: endings that the caller reads itself, for errors.

    Raises:
        UserError: There is no such file, its ending is none of the known ones or not what it is,
            or a row is broken.
    """
    path = Path(expand_user(name))
    reader = reader or READERS.get(path.suffix.lower())
    if reader is None:
        endings = ", ".join([*READERS, *more_endings])
        raise UserError(f"{field} = {name}: the ending must be one of {endings}")
    if not path.is_file():
        raise no_such_file(field, name)
    if path.stat().st_size == 0:
        raise UserError(f"{field} = {name}: the file is empty")
    try:
        dataset = _as_dataset(reader(path), used)
    except UserError as error:
        raise UserError(f"{field} = {name}: {error}") from None
    except Exception as error:  # pyarrow's own kinds, for a damaged file
        raise UserError(f"{field} = {name}: {kind_and_first_line(error)}") from error
    if len(dataset) == 0:
        raise UserError(f"{field} = {name}: the file has no rows")
    return dataset


def no_such_file(field: str, name: str) -> UserError:
    """Return the error for a setting that names a file that is not there."""
    folder = Path(expand_user(name)).absolute().parent
    return UserError(f"{field} = {name}: there is no such file (looked in {folder})")


def _as_dataset(columns: Columns, used: Collection[str] | None) -> Dataset:
    """Return the columns as a data set, without those that are not used and have no one type."""
    from datasets import Dataset

    # Most files are sound. Only others are looked at column by column.
    if _has_type(columns):
        return Dataset.from_dict(columns)
    sound = {}
    for name, values in columns.items():
        if _has_type({name: values}):
            sound[name] = values
        elif used is None or name in used:
            raise UserError(_describe_broken(name, values))
        else:
            reason = _describe_broken(name, values).removesuffix(". Mend or drop the row")
            log.warning("the column %s is left out: %s", name, reason)
    return Dataset.from_dict(sound)


def _has_type(columns: Columns) -> bool:
    from datasets import Dataset
    from pyarrow import ArrowException

    try:
        Dataset.from_dict(columns)
    # Halves of surrogate pairs raise the second, integers of more than 64 bits the last.
    except (ArrowException, UnicodeError, TypeError, ValueError, OverflowError):
        return False
    return True


def _describe_broken(name: str, values: list[Any]) -> str:
    """Return what is wrong with the first value that does not go with those before it."""
    # pyarrow says that the values have no one type, but not in which row: sought by halves.
    sound, broken = 0, len(values)  # so many rows have a type; so many have none
    while broken - sound > 1:
        middle = (sound + broken) // 2
        if _has_type({name: values[:middle]}):
            sound = middle
        else:
            broken = middle
    value = values[sound]
    shown = repr(value)[:SHOWN]
    if not _is_unicode(name) or not _is_unicode(_plain_json(value)):
        return (
            f"row {sound}: {name!r} = {shown} holds half of a surrogate pair, which is no text. "
            "Mend or drop the row"
        )
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        return (
            f"row {sound}: {name} = {shown} is a whole number beyond 64 bits, which only a text "
            "can hold. Mend or drop the row"
        )
    before = {type(other).__name__ for other in values[:sound] if other is not None}
    return (
        f"row {sound}: {name} = {shown} is of the type {type(value).__name__}, and the rows before "
        f"it hold {' or '.join(sorted(before)) or 'nothing'}. Mend or drop the row"
    )


def _plain_json(value: Any) -> str:
    """Return a value's JSON with its letters as they are."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_json_lines(path: Path) -> Columns:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text_lines(path), start=1):
        if line.strip():
            rows.append(_json_object(line, f"row {len(rows)} (line {number})"))
    names = dict.fromkeys(chain.from_iterable(rows))  # in the order of their first rows
    # A key that a line lacks is a missing value, as in any table.
    columns = {}
    for name in names:
        columns[name] = [row.get(name) for row in rows]
    return columns


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        hint = ""
        if line.lstrip().startswith("[") or line.strip() == "{":
            hint = " (one JSON object a line is meant, not one document)"
        raise UserError(f"{where} is not JSON: {error.msg}{hint}") from None
    except ValueError:  # Python reads no number of thousands of digits
        raise UserError(f"{where} holds a number of too many digits. Mend or drop it") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply") from None
    if not isinstance(row, dict):
        raise UserError(f"{where} is {type(row).__name__}, not an object of columns")
    return row


def _read_parquet(path: Path) -> Columns:
    from pyarrow import parquet

    with path.open("rb") as file:
        # pyarrow's own message speaks of magic bytes and of a footer.
        if file.read(4) != b"PAR1":
            raise UserError("is no parquet file, whatever its ending says")
        columns: Columns = parquet.read_table(path).to_pydict()
    return columns


READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}
"""The known endings, in small letters; a file may have them in capital letters too."""


def write_file(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of like keys to a file, by its ending.

    Nested values become JSON in a format that has none. In JSON, a date or a time becomes its ISO
    text, another value without a form there its text, and a number that is not finite becomes null.

    Raises:
        UserError: The ending is none of the known ones, or the file is a .tsv, which quotes
            nothing, and cannot hold a value.
    """
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UserError(f"--output {path}: the ending must be one of {', '.join(READERS)}")
    writer(path, rows)


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    from datasets import Dataset

    Dataset.from_list(list(rows)).to_parquet(path)


def _write_json_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        for row in rows:
            file.write(_written_json(row) + "\n")


def _write_tsv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    # All cells are looked at first, so that a refusal leaves no half of a file.
    table = _cells(rows)
    for line in table:
        for cell in line:
            if re.search(r"[\t\r\n]", cell):
                raise UserError(
                    f"--output {path}: {cell!r} holds a tab or a line break, which .tsv cannot. "
                    "Write another kind"
                )
    with path.open("w", encoding="utf-8", newline="") as file:
        for line in table:
            file.write("\t".join(line) + "\n")


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    table = _cells(rows)
    # Python's csv before 3.13 leaves a lone carriage return unquoted.
    has_return = any("\r" in cell for cell in chain.from_iterable(table))
    quoting: Any = csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n", quoting=quoting).writerows(table)


WRITERS: dict[str, Callable[[Path, Sequence[dict[str, Any]]], None]] = {
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}


def _cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the header and the rows as texts."""
    table = [list(rows[0])]
    for row in rows:
        table.append([_cell(value) for value in row.values()])
    return table


def _cell(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return _written_json(value)
    return "" if value is None else str(value)


def _written_json(value: Any) -> str:
    return json.dumps(without_nan(value), ensure_ascii=False, default=_as_text)


def _as_text(value: Any) -> str:
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)
