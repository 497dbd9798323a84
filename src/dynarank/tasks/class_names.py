"""The classes of a column: their names, and the class number that each value of the column means.

A column may hold names, numbers, texts that are numbers, or a class feature of datasets, whose
values are numbers that have names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from dynarank.errors import UserError

LISTED = 20
"""Classes that a log line names."""
MOST_CLASSES = 100
"""More distinct values than this, and than half the rows, are not taken for classes."""


def value_name(value: Any) -> str:
    """Return the name that a value has as a class: 1.0 is the class '1', and ' yes' is 'yes'."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def numbers_by_value(names: Sequence[str]) -> dict[str, int]:
    """Return the class numbers by name, and also by the number itself unless a number is a name."""
    by_name = {name.strip(): index for index, name in enumerate(names)}
    by_number = {str(index): index for index in range(len(names))}
    # Where the names are '1' and '2', the value '1' is the first class, and not class number 1.
    if by_name.keys() & by_number.keys():
        return by_name
    return by_name | by_number


def numbers_of_feature(feature: Any, names: Sequence[str]) -> dict[str, int]:
    """Return the class numbers by the values that a class feature holds.

    These values are numbers, which never mean names. They are mapped by the feature's own names
    where these are among `names`. For other features the dictionary is empty.
    """
    own_names: Sequence[str] | None = getattr(feature, "names", None)
    if not own_names:
        return {}
    if set(own_names) <= set(names):
        return {str(index): names.index(name) for index, name in enumerate(own_names)}
    return {str(index): index for index in range(len(names))}


def find_classes(feature: Any, values: Sequence[Any], where: str) -> list[str]:
    """Return the names of the classes that a column has, in the order of their numbers.

    A class feature has names of its own. Otherwise the names are the distinct values, in the order
    of numbers where all are numbers, else in alphabetic order.

    Args:
        feature: the column's feature, as datasets has it.
        values: the column's values.
        where: the column and its source, for errors.

    White space around a name does not count.

    Raises:
        UserError: A value is missing, there is one class only, or there are too many.
    """
    own_names = getattr(feature, "names", None)
    if own_names:
        return list(own_names)
    for row, value in enumerate(values):
        is_nan = value != value  # noqa: PLR0124  (a text is none, and math.isnan refuses it)
        if value is None or is_nan or not value_name(value):
            raise UserError(f"{where} is missing in row {row}. Mend or drop the row")
    names = sorted({value_name(value) for value in values})
    with suppress(ValueError):
        # Where a key fails, nothing is moved, and the order stays alphabetic.
        names.sort(key=float)
    if len(names) < 2:
        raise UserError(
            f"{where} is {names[0]!r} in every row: there is nothing to learn. "
            "Is it the right column?"
        )
    if len(names) > max(MOST_CLASSES, len(values) // 2):
        raise UserError(
            f"{where} has {len(names)} distinct values in {len(values)} rows: not classes. For "
            "numbers, use task=text_regression (task.target=number); else name the right column "
            "in task.columns.label"
        )
    return names


def check_single_values(values: Sequence[Any], where: str, column: str) -> None:
    """Raise `UserError` where a value is a list or the like: a row has one class.

    Args:
        values: the column's values.
        where: the rows' source, for errors.
        column: the column's name, for errors.
    """
    for row, value in enumerate(values):
        if isinstance(value, (list, tuple, dict)):
            raise UserError(
                f"{where}, row {row}: {column} = {value!r} is a {type(value).__name__}: a row has "
                "one class. Make a text or a number of it"
            )


def describe_classes(names: Sequence[str], classes: Sequence[int]) -> str:
    """Return the classes and how many rows each has, in words.

    Args:
        names: of the classes.
        classes: the class number of each row.
    """
    counts = Counter(classes)
    parts = []
    for number, name in enumerate(names[:LISTED]):
        parts.append(f"{name!r} ({counts[number]:,} rows)")
    if len(names) > LISTED:
        parts.append(f"and {len(names) - LISTED} more")
    return f"{len(names)} classes: {', '.join(parts)}"
