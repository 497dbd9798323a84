"""Files of the CoNLL kind: a word and its tag a line, an empty line between sentences.

The word stands in the first column, its tag in the last. Columns in between (parts of speech) are
not read. A file of one column holds words without tags. `-DOCSTART-` lines part documents, and are
left out, as are comments of the form `# name = value`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dynarank.errors import UserError
from dynarank.tasks.delimited import text_lines

ENDINGS = (".conll", ".bio", ".iob", ".iob2", ".iobes")
DOCUMENT = "-DOCSTART-"
COMMENT = re.compile(r"#\s*(\S+\s*=|id\b)")


def read_conll(path: Path, tokens: str, tags: str) -> dict[str, list[Any]]:
    """Return the sentences of a file as two columns, or one where it holds no tags.

    Args:
        path: the file.
        tokens: the name of the column of words.
        tags: the name of the column of tags.

    Raises:
        UserError: A line has not as many columns as the first one; it is named with its row.
    """
    rows: list[list[list[str]]] = [[]]  # the fields of each word of each sentence
    width = 0
    for number, line in enumerate(text_lines(path), start=1):
        fields = _fields(line)
        if not fields or fields[0] == DOCUMENT:
            if rows[-1]:
                rows.append([])
            continue
        # Inside a sentence, # is a word.
        if not rows[-1] and COMMENT.match(line):
            continue
        width = width or len(fields)
        if len(fields) != width:
            raise UserError(
                f"row {len(rows) - 1} (line {number}) has {len(fields)} columns, and the first "
                f"line of words has {width}: {line.strip()[:80]!r}. Mend the line"
            )
        rows[-1].append(fields)
    sentences = [row for row in rows if row]
    columns: dict[str, list[Any]] = {tokens: [_column(words, 0) for words in sentences]}
    if width > 1:
        columns[tags] = [_column(words, -1) for words in sentences]
    return columns


def _column(words: list[list[str]], place: int) -> list[str]:
    return [fields[place] for fields in words]


def _fields(line: str) -> list[str]:
    """Return the columns of a line: parted by tabs where it has some, else by white space."""
    stripped = line.strip()
    if "\t" not in stripped:
        return stripped.split()
    return [field.strip() for field in stripped.split("\t")]
