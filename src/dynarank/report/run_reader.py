"""How the files of a run's folder are read, whatever state they are in.

A file may be missing, cut off, binary, or somebody else's. Everything that is wrong with one is
raised as `UnreadableFile` with a reason, so that a report leaves out one run and goes on.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import yaml

if TYPE_CHECKING:
    import pandas as pd

OPEN = "(none)"
"""How a setting without a value is shown."""
MOST_BYTES = 256 * 1024**2
"""A file beyond this size is no file of a run's."""
MOST_SETTINGS = 10_000
"""A configuration of more settings than this is damaged; YAML's aliases can make any number."""
DEEPEST = 50
"""A configuration that is nested deeper than this is damaged."""
LARGEST_SETTING = 10**300
"""Python turns no whole number of thousands of digits into text."""
LARGEST_SCORE = 1e12
LARGEST_COUNT = 10**15
LARGEST_RANK = 10**6
LARGEST_DRAWN = 1e30
"""Beyond it a value of the history counts as missing: a loss that diverged cannot be drawn."""


class UnreadableFile(Exception):
    """A file of a run's folder cannot be used. The message names the file and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.name} {reason}")


# The parser in C is many times faster, but not in every build of PyYAML.
class _SettingsLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as Hydra writes and reads it: `1e-4` is a number, and nothing is a date."""


def _without_dates(resolvers: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]


# A table of its own: the one that it inherits is that of all of PyYAML's safe loaders.
_SettingsLoader.yaml_implicit_resolvers = {
    letter: _without_dates(resolvers)
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# PyYAML takes a number with an exponent and no point, as 1e-4, for text.
_SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        UnreadableFile: it is missing, no regular file, too large, or not UTF-8.
    """
    try:
        if not path.exists():
            raise UnreadableFile(path, "is missing")
        if not path.is_file():
            raise UnreadableFile(path, "is not a file")
        if path.stat().st_size > MOST_BYTES:
            raise UnreadableFile(path, f"is larger than {MOST_BYTES // 1024**2} MiB")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UnreadableFile(path, "is damaged (it is not UTF-8 text)") from None
    except OSError as error:
        raise UnreadableFile(path, f"cannot be read ({error.strerror})") from None


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UnreadableFile: it cannot be read, or is not JSON.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
        if "\\ud" not in text.lower():
            return content
        # An escape can stand for half a surrogate pair, which nothing can show.
        return json.loads(_shown_text(json.dumps(content, ensure_ascii=False)))
    except json.JSONDecodeError as error:
        reason = f"is damaged ({error.msg} at line {error.lineno})"
        raise UnreadableFile(path, reason) from None
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(path, f"is damaged ({first_line(error)})") from None


def _shown_text(text: str) -> str:
    """Return a text with a question mark for each half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


def read_settings(path: Path) -> dict[str, Any]:
    """Return a configuration, flattened: `{"budget.target": 2}`.

    Raises:
        UnreadableFile: it cannot be read, is not YAML, or is not a configuration.
    """
    content = _read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise UnreadableFile(path, "is damaged (it holds no settings)")
    settings: dict[str, Any] = {}
    try:
        for name, value in _flatten(content, ""):
            # YAML takes a number of any length in hexadecimal digits.
            if isinstance(value, int) and abs(value) > LARGEST_SETTING:
                raise UnreadableFile(path, f"is damaged ({name[:60]} is a huge number)")
            settings[name] = value
            if len(settings) > MOST_SETTINGS:
                raise UnreadableFile(path, f"is damaged (more than {MOST_SETTINGS:,} settings)")
    except RecursionError:
        raise UnreadableFile(path, "is damaged (it is nested without an end)") from None
    return settings


def read_overrides(path: Path) -> list[str] | None:
    """Return what was given on the command line; None where it is not recorded or damaged."""
    try:
        content = _read_yaml(path)
    except UnreadableFile:
        return None
    return (
        [_shown_text(str(override)) for override in content] if isinstance(content, list) else None
    )


def _read_yaml(path: Path) -> Any:
    text = read_text(path)
    try:
        # The parser calls itself for each level, so deep nesting would end the process.
        depth = 0
        for event in yaml.parse(text, Loader=_SettingsLoader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > DEEPEST:
                raise UnreadableFile(path, f"is damaged (nested more than {DEEPEST} levels deep)")
        return yaml.load(text, Loader=_SettingsLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UnreadableFile(path, f"is damaged (no YAML: {first_line(error)})") from None


def _flatten(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield each setting's dotted name and its value; a list is one value, as text."""
    if isinstance(node, dict):
        for key, value in node.items():
            name = _shown_text(str(key))
            yield from _flatten(value, f"{prefix}.{name}" if prefix else name)
    elif node is None:
        yield prefix, OPEN
    elif isinstance(node, str):
        yield prefix, _shown_text(node)
    elif isinstance(node, bool | int | float):
        yield prefix, node
    else:
        yield prefix, str(node)


def read_ranks(path: Path) -> dict[str, int]:
    """Return the kept rank by matrix.

    Raises:
        UnreadableFile: it cannot be read, or does not hold ranks by name.
    """
    return check_ranks(path, read_json(path))


def read_prunings(path: Path) -> list[tuple[int, dict[str, int]]]:
    """Return the optimizer step and the ranks by matrix after every pruning, in order.

    Raises:
        UnreadableFile: it cannot be read, or does not hold steps with ranks.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise UnreadableFile(path, "is damaged (it is not a list of prunings)")
    prunings = []
    for entry in content:
        if not isinstance(entry, dict) or not is_count(entry.get("step")):
            raise UnreadableFile(path, "is damaged (a pruning has no step)")
        prunings.append((int(entry["step"]), check_ranks(path, entry.get("ranks"))))
    return prunings


def check_ranks(path: Path, content: Any) -> dict[str, int]:
    """Return the content if it holds ranks by name. Raises `UnreadableFile` if not."""
    if not isinstance(content, dict):
        raise UnreadableFile(path, "is damaged (it does not hold ranks by matrix)")
    for name, rank in content.items():
        if not is_count(rank) or rank > LARGEST_RANK:
            raise UnreadableFile(path, f"is damaged (the rank of {name[:60]} is {shown(rank)})")
    return dict(content)


def read_history(path: Path) -> pd.DataFrame:
    """Return metrics.csv: a row a logged step, numbers in every column.

    Raises:
        UnreadableFile: it cannot be read, has no column `step`, or holds what is no number.
    """
    import pandas as pd

    text = read_text(path)
    try:
        table = pd.read_csv(io.StringIO(text))
    except (ValueError, OverflowError) as error:
        raise UnreadableFile(path, f"is damaged ({first_line(error)})") from None
    if not text.strip() or "step" not in table:
        raise UnreadableFile(path, "is damaged (it has no column 'step')")
    for column, kind in table.dtypes.items():
        if getattr(kind, "kind", "O") not in "iufb":  # whole numbers, floats and booleans alone
            raise UnreadableFile(path, f"is damaged (column {str(column)[:60]!r} holds text)")
    # Without a copy, pandas gives a view that cannot be written.
    values = table.to_numpy(dtype=float, copy=True)
    values[np.abs(values) > LARGEST_DRAWN] = np.nan
    numbers = pd.DataFrame(values, columns=table.columns)
    steps = numbers["step"].to_numpy()
    if not (steps >= 0).all():  # NaN is not, either.
        raise UnreadableFile(path, "is damaged (a row has no step)")
    return numbers


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value of a JSON file is a number, NaN and infinity included."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: object) -> TypeGuard[int]:
    """Return whether a value of a JSON file is a whole number of a plausible size."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_COUNT


def is_score(value: object) -> bool:
    """Return whether a value may be a score: a plausible number; null and NaN are undefined."""
    if value is None:
        return True
    if not is_number(value):
        return False
    return abs(value) <= LARGEST_SCORE or math.isnan(value)


def shown(value: object, most: int = 40) -> str:
    """Return a value as a message has room for it."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST_COUNT:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the error's name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def as_score(value: float | None) -> float:
    """Return a recorded score as a number; NaN where it is undefined."""
    return math.nan if value is None else float(value)
