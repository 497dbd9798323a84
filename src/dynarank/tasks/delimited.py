"""Files of fields with a separator between them: .csv and .tsv, read strictly.

Values stay texts, to the letter. Names of columns lose the white space around them.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from dynarank.errors import UserError

log = logging.getLogger(__name__)

# csv refuses fields of more than 131,072 characters. A higher limit overflows C's long on Windows.
csv.field_size_limit(2**31 - 1)
ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
SEPARATORS = (",", ";", "\t")
"""What may stand between the fields of a .csv file; the first that splits the header is taken."""


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file with their ends.

    Raises:
        UserError: A line is not UTF-8, or is no text.
    """
    # A decoder's own error counts from the block it was given; an escaped byte stays in its line.
    # -sig drops the mark that Excel begins a file with; newline="" keeps line ends in fields.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for number, line in enumerate(file, start=1):
            if not line.isascii() and ESCAPED_BYTE.search(line):
                raise UserError(
                    f"line {number} is not UTF-8 text, so it is no {path.suffix} file. "
                    "Save it as UTF-8"
                )
            if "\0" in line:
                raise UserError(f"holds binary data, so it is no {path.suffix} file")
            yield line


def read_csv(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a .csv file, whose fields a comma, a semicolon or a tab separates."""
    header_line = next(text_lines(path), "")
    for separator in SEPARATORS:
        if len(next(csv.reader([header_line], delimiter=separator), [])) > 1:
            if separator != SEPARATORS[0]:
                log.info("%s: read with %r between the fields", path, separator)
            return _read_delimited(path, delimiter=separator)
    return _read_delimited(path)


def read_tsv(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a .tsv file.

    Quotation marks are part of the text, since a field that begins with one would otherwise swallow
    the rows after it. But a file that is quoted throughout as csv writers (pandas) do is read so.
    """
    for quote_all in (False, True):
        if _is_quoted(path, quote_all):
            log.info("%s: read with quoted fields, as pandas writes them", path)
            return _read_delimited(path, delimiter="\t")
    return _read_delimited(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _is_quoted(path: Path, quote_all: bool) -> bool:
    """Return whether writing the rows anew with quoted fields gives the file, quotes included.

    Args:
        path: the file.
        quote_all: whether all fields are quoted, or those that need it.
    """
    quoting: Any = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    taken: list[str] = []  # lines of the present row

    def lines() -> Iterator[str]:
        for line in text_lines(path):
            taken.append(line)
            yield line

    has_quotes = False
    try:
        for row in csv.reader(lines(), delimiter="\t", strict=True):
            written = io.StringIO()
            csv.writer(written, delimiter="\t", lineterminator="\n", quoting=quoting).writerow(row)
            if row and written.getvalue().rstrip("\n") != "".join(taken).rstrip("\r\n"):
                return False
            has_quotes |= '"' in written.getvalue()
            taken.clear()
    except csv.Error:
        return False
    return has_quotes


def _read_delimited(path: Path, **dialect: Any) -> dict[str, list[Any]]:
    lines = text_lines(path)
    first_line = next(lines, "")
    start = first_line.lstrip()[:1]
    if start in ("{", "["):
        raise UserError(f"begins with {start!r}: it looks like JSON, not like {path.suffix}")
    # The first line was taken to look at it, and is put back.
    reader = csv.reader(chain([first_line], lines), strict=True, **dialect)
    rows = (row for row in reader if row)  # without blank lines
    ended = 0  # the last line of the last whole row
    try:
        header = [name.strip() for name in next(rows, [])]
        _check_header(header)
        columns: list[list[str]] = [[] for _ in header]
        ended = reader.line_num
        for index, row in enumerate(rows):
            ended = reader.line_num
            where = f"row {index} (line {reader.line_num})"
            for column, value in zip(columns, _fitted(row, header, where), strict=True):
                column.append(value)
    except csv.Error as error:
        # csv says this of the last line alone, which may be far behind the mark.
        if "end of data" in str(error):
            raise UserError(
                f"line {ended + 1}: a quotation mark opens a field, and none closes it. Mend the "
                "line"
            ) from None
        raise UserError(f"line {reader.line_num}: {error}") from None
    # Without a column that has no name, as that of pandas' row numbers.
    return {name: column for name, column in zip(header, columns, strict=True) if name}


def _check_header(header: list[str]) -> None:
    names = [name for name in header if name]
    if len(set(names)) < len(names):
        raise UserError(f"the header names a column twice: {', '.join(names)}")


def _fitted(row: list[str], header: list[str], where: str) -> list[str]:
    """Return a row with as many fields as the header; only empty ones are left out.

    The first column may have values without a name: pandas writes row numbers there.
    """
    if len(row) < len(header) or any(row[len(header) :]):
        raise UserError(f"{where} has {len(row)} fields where the header has {len(header)}")
    row = row[: len(header)]
    for number, (name, value) in enumerate(zip(header, row, strict=True)):
        if not name and value and number > 0:
            raise UserError(
                f"{where} has {value!r} in column {number + 1}, which has no name in the header"
            )
    return row
