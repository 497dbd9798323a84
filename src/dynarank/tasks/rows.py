"""Checks of rows that all task families share, and seeded samples of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dynarank.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


def sample_rows(dataset: Dataset, rows: int | None, seed: int) -> Dataset:
    """Return a seeded sample of so many rows; all rows where `rows` is None or not fewer."""
    if rows is None or rows >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(rows))


def reach_nested(dataset: Dataset, columns: Sequence[str]) -> Dataset:
    """Return the rows with the nested columns that a dotted name reaches into taken apart.

    Others stay as they are: SQuAD's answers are nested too, and are one column.

    Args:
        dataset: the rows.
        columns: names; of `doc.text`, the column `doc` is taken apart.
    """
    from datasets import concatenate_datasets

    depth = max(column.count(".") for column in columns) if columns else 0
    # A level at a time: `a.b.c` first takes `a` apart, and then `a.b`, which is a column now.
    for level in range(1, depth + 1):
        parents = set()
        for column in columns:
            # A data set may have columns with a dot in their names.
            if column not in dataset.column_names and column.count(".") >= level:
                parents.add(".".join(column.split(".")[:level]))
        apart = [name for name in dataset.column_names if name in parents]
        if apart:
            taken_apart = dataset.select_columns(apart).flatten(max_depth=2)  # one level
            rest = dataset.remove_columns(apart)
            parts = [rest, taken_apart] if rest.column_names else [taken_apart]
            dataset = concatenate_datasets(parts, axis=1)
    return dataset


def check_ids(dataset: Dataset, where: str, column: str) -> None:
    """Raise `UserError` where a value of the column occurs twice.

    Args:
        dataset: the rows.
        where: the rows' source, for errors.
        column: the id column.
    """
    # Compared as they are written into files, where 1 and "1" are the same.
    ids = np.asarray(dataset[column][:], dtype=object).astype(str)
    values, counts = np.unique(ids, return_counts=True)
    repeated = values[counts > 1]
    if len(repeated) == 0:
        return
    rows = np.flatnonzero(ids == repeated[0])
    raise UserError(
        f"{where}, rows {rows[0]} and {rows[1]}: {column} = {str(repeated[0])!r} twice "
        f"({len(repeated)} such ids). Make them unique, or set task.columns.id=null"
    )


def check_texts(dataset: Dataset, where: str, columns: Sequence[str], allow_blank: bool) -> None:
    """Raise `UserError` where one of the columns holds no texts, or a row has none in it.

    Args:
        dataset: the rows.
        where: the rows' source, for errors.
        columns: the columns to check.
        allow_blank: whether a text may be empty or consist of white space.
    """
    table = dataset.with_format("arrow")[:]
    for column in columns:
        values = table[column]
        if str(values.type) not in ("string", "large_string"):
            raise UserError(f"{where}: the column {column!r} holds {values.type}, not text")
        if values.null_count:
            row = values.is_null().index(True).as_py()
            raise UserError(f"{where}, row {row}: {column} is missing. Mend or drop the row")
        if allow_blank:
            continue
        texts = values.to_pylist()
        blank = [row for row, text in enumerate(texts) if not text.strip()]
        if blank:
            raise UserError(
                f"{where}, row {blank[0]}: {column} is empty ({len(blank)} such rows). "
                "Mend or drop them"
            )
