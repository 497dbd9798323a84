"""The user's own data in a file: csv, tsv, json lines or parquet, checked as it is read.

Rows are counted from 0, without a header. Values of csv and tsv stay texts: what a column means is its task's matter.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

csv.field_size_limit(2**31 - 1)
ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


def read_file(field: str, name: str) -> Dataset:
    """The rows of a file, by its ending.

    Args:
        field: the setting that named the file, for errors.

    Raises:
        UserError: there is no such file, its ending is none of the known ones or not what it is, or a row is broken.
    """
    from datasets import Dataset

    path = Path(name).expanduser()
    if path.suffix not in READERS:
        raise UserError(f"{field} = {name}: the ending must be one of {', '.join(READERS)}")
    if not path.is_file():
        raise UserError(
            f"{field} = {name}: there is no such file (looked in {path.absolute().parent})"
        )
    if path.stat().st_size == 0:
        raise UserError(f"{field} = {name}: the file is empty")
    try:
        columns = READERS[path.suffix](path)
        dataset = Dataset.from_dict(columns)
    except UserError as error:
        raise UserError(f"{field} = {name}: {error}") from None
    except Exception as error:  # pyarrow's own kinds, for columns of mixed types
        raise UserError(
            f"{field} = {name}: {type(error).__name__}: {error}".splitlines()[0]
        ) from error
    if len(dataset) == 0:
        raise UserError(f"{field} = {name}: the file has no rows")
    return dataset


def _text_lines(path: Path) -> Iterator[str]:
    # A decoder's own error counts from the block it was given; an escaped byte stays in its line.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for number, line in enumerate(file, start=1):
            if not line.isascii() and ESCAPED_BYTE.search(line):
                raise UserError(
                    f"line {number} is not UTF-8 text, so it is no {path.suffix} file. Save it as UTF-8"
                )
            if "\0" in line:
                raise UserError(f"holds binary data, so it is no {path.suffix} file")
            yield line


def _read_delimited(path: Path, **dialect: Any) -> dict[str, list[str]]:
    lines = _text_lines(path)
    first = next(lines, "")
    if first.lstrip().startswith(("{", "[")):
        raise UserError(
            f"begins with {first.lstrip()[:1]!r}: it looks like JSON, not like {path.suffix}"
        )
    reader = csv.reader(chain([first], lines), strict=True, **dialect)
    rows = (row for row in reader if row)  # blank lines
    try:
        header = next(rows, [])
        if len(set(header)) < len(header):
            raise UserError(f"the header names a column twice: {', '.join(header)}")
        columns: list[list[str]] = [[] for _ in header]
        for index, row in enumerate(rows):
            if len(row) != len(header):
                raise UserError(
                    f"row {index} (line {reader.line_num}) has {len(row)} fields where the header has {len(header)}"
                )
            for column, value in zip(columns, row, strict=True):
                column.append(value)
    except csv.Error as error:
        raise UserError(f"line {reader.line_num}: {error}") from None
    return dict(zip(header, columns, strict=True))


def _read_csv(path: Path) -> dict[str, list[str]]:
    return _read_delimited(path)


def _read_tsv(path: Path) -> dict[str, list[str]]:
    # No quoting: a field that begins with a quotation mark would otherwise swallow the rows after it.
    return _read_delimited(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_json_lines(path: Path) -> dict[str, list[Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            document = line.lstrip().startswith("[") or line.strip() == "{"
            whole = " (one JSON object a line is meant, not one document)" if document else ""
            raise UserError(
                f"row {len(rows)} (line {number}) is not JSON: {error.msg}{whole}"
            ) from None
        if not isinstance(row, dict):
            raise UserError(
                f"row {len(rows)} (line {number}) is {type(row).__name__}, not an object of columns"
            )
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    from pyarrow import parquet

    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            raise UserError("is no parquet file, whatever its ending says")
    columns: dict[str, list[Any]] = parquet.read_table(path).to_pydict()
    return columns


READERS: dict[str, Callable[[Path], dict[str, list[Any]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}


def write_file(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of like keys to a file, by its ending; nested values become JSON where the format has none.

    Raises:
        UserError: the ending is none of the known ones, or a .tsv, which quotes nothing, cannot hold a value.
    """
    if path.suffix not in READERS:
        raise UserError(f"--output {path}: the ending must be one of {', '.join(READERS)}")
    if path.suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_list(list(rows)).to_parquet(path)
        return
    if path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8", newline="") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return
    table = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    broken = [cell for cells in table for cell in cells if re.search(r"[\t\r\n]", cell)]
    if path.suffix == ".tsv" and broken:
        raise UserError(
            f"--output {path}: {broken[0]!r} holds a tab or a line break, which .tsv cannot. Write another kind"
        )
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".tsv":
            file.writelines("\t".join(cells) + "\n" for cells in table)
        else:
            # Python's csv before 3.13 leaves a lone carriage return unquoted.
            quoting: dict[str, Any] = (
                {"quoting": csv.QUOTE_ALL} if any("\r" in cell for cell in broken) else {}
            )
            csv.writer(file, lineterminator="\n", **quoting).writerows(table)


def _cell(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else str(value)
