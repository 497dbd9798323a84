"""Ranges and choices that settings state beside their types, and the one check of them.

A configuration's dataclass writes `warmup: Annotated[float, Ge(0), Lt(1)] = 0.06` and calls
`check_settings("optimizer", self)` in its `__post_init__`. The same rules are shown by
`dynarank train --help settings`. This module imports nothing outside Python's own library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Protocol, get_args, get_origin, get_type_hints


class Rule(Protocol):
    """What a value must fulfil."""

    def allows(self, value: Any) -> bool:
        """Return whether the value fulfils the rule."""

    def __str__(self) -> str:
        """Return the rule as it ends a sentence that begins with 'must be'."""


def _number(bound: float) -> str:
    """Return a bound as people write it: a whole number with all its digits."""
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


@dataclass(frozen=True)
class Ge:
    """The number must be at least the bound."""

    bound: float

    def allows(self, value: float) -> bool:
        return value >= self.bound

    def __str__(self) -> str:
        return f"at least {_number(self.bound)}"


@dataclass(frozen=True)
class Gt:
    """The number must be above the bound."""

    bound: float

    def allows(self, value: float) -> bool:
        return value > self.bound

    def __str__(self) -> str:
        return f"above {_number(self.bound)}"


@dataclass(frozen=True)
class Lt:
    """The number must be below the bound."""

    bound: float

    def allows(self, value: float) -> bool:
        return value < self.bound

    def __str__(self) -> str:
        return f"below {_number(self.bound)}"


@dataclass(frozen=True)
class Le:
    """The number must be at most the bound."""

    bound: float

    def allows(self, value: float) -> bool:
        return value <= self.bound

    def __str__(self) -> str:
        return f"at most {_number(self.bound)}"


@dataclass(frozen=True)
class OneOf:
    """The text, or each text of a list, must be one of the choices."""

    choices: Sequence[str]

    def allows(self, value: str | Sequence[str]) -> bool:
        values = [value] if isinstance(value, str) else value
        return set(values) <= set(self.choices)

    def __str__(self) -> str:
        return f"one of {', '.join(self.choices)}"


@dataclass(frozen=True)
class Form:
    """The whole text must match a pattern, which `text` describes to a person."""

    pattern: str
    text: str

    def allows(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class UserPath:
    """The text is a path, in which a leading ~ means the home folder. It allows every text."""

    def allows(self, value: str) -> bool:
        return True

    def __str__(self) -> str:
        return "a path"


def expand_user(path: str) -> str:
    """Return a path with the home folder in place of a leading ~, or the path as it is.

    A machine whose user has no home folder leaves the path as it is, too.
    """
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        return path


def check_settings(prefix: str, config: Any) -> None:
    """Check each field of a configuration against the rules in its annotation.

    Numbers must be finite. Null, and a value that is still open (`???`, `${...}`), pass. Paths
    are expanded in place.

    Args:
        prefix: the configuration's place in the whole one, as "trainer"; "" at the top.
        config: an instance of a dataclass.

    Raises:
        ValueError: a value breaks a rule; the message names the setting, its value and the rule.
    """
    schema: type = type(config)
    rules = setting_rules(schema)
    for field in fields(config):
        value = getattr(config, field.name)
        if value is None or _is_open(value):
            continue
        name = f"{prefix}.{field.name}" if prefix else field.name
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} = {value}: must be a finite number")
        own = rules[field.name]
        if not all(rule.allows(value) for rule in own):
            shown = repr(value) if isinstance(value, str) else value
            raise ValueError(f"{name} = {shown}: must be {' and '.join(map(str, own))}")
        if any(isinstance(rule, UserPath) for rule in own):
            if not isinstance(value, str):  # from a record, which no schema has checked
                raise ValueError(f"{name} = {value!r}: must be a text")
            setattr(config, field.name, expand_user(value))


def _is_open(value: object) -> bool:
    # Hydra's mark of a value that is missing, and the beginning of a reference to another one.
    return isinstance(value, str) and (value == "???" or value.startswith("${"))


@cache
def setting_rules(schema: type) -> dict[str, tuple[Rule, ...]]:
    """Return the rules of each field of a configuration's dataclass."""
    return {name: rules for name, (_, rules) in _annotations(schema).items()}


@cache
def setting_types(schema: type) -> dict[str, Any]:
    """Return the type of each field of a configuration's dataclass, without its rules."""
    return {name: kind for name, (kind, _) in _annotations(schema).items()}


def _annotations(schema: type) -> dict[str, tuple[Any, tuple[Rule, ...]]]:
    found = {}
    # Annotations are texts in modules that import them from __future__, and this reads them.
    # Without include_extras it would drop the rules.
    for name, hint in get_type_hints(schema, include_extras=True).items():
        if get_origin(hint) is Annotated:
            kind, *rules = get_args(hint)
            found[name] = (kind, tuple(rules))
        else:
            found[name] = (hint, ())
    return found
