"""Every setting with its type, default and meaning, read from the schema.

The help and docs/settings.md are made from this. To write the page again:

python -m dynarank.config.describe docs/settings.md
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from dynarank.config.schema import SCHEMAS, TrainConfig
from dynarank.settings import setting_rules, setting_types

REQUIRED = "???"
"""OmegaConf's sign for a value that must be given."""


@dataclass(frozen=True)
class Setting:
    """A setting as the command line knows it."""

    name: str
    """Its dotted name."""
    type: str
    """Its type and range, in words."""
    default: str
    """Its value in the schema, as it is written in YAML; files in conf/ may hold another."""
    meaning: str
    """What the schema says of it, in one line."""
    variant: str = ""
    """The task family or method that has it, where not all have it alike."""


def describe_settings() -> list[Setting]:
    """Return every setting of a run, in the schema's order.

    A setting that all tasks or methods have alike stands once; others stand once a variant.
    """
    settings: list[Setting] = []
    for field in dataclasses.fields(TrainConfig):
        variants = _variants(field.name)
        if not variants:
            settings += _describe(TrainConfig, field, "")
            continue
        of_variant = {
            name: list(_describe_all(schema, f"{field.name}.")) for name, schema in variants.items()
        }
        settings += _without_repetition(of_variant)
    return settings


def setting_names() -> list[str]:
    """Return every setting's dotted name, those of all variants included."""
    # A typo is answered from these names. The meanings, read from source, would take half a second.
    names: dict[str, None] = {}
    for field in dataclasses.fields(TrainConfig):
        variants = _variants(field.name)
        for schema in variants.values():
            names |= dict.fromkeys(_names_in(schema, f"{field.name}."))
        if not variants:
            names |= dict.fromkeys(_names_of(TrainConfig, field.name, ""))
    return list(names)


def variants_with(name: str) -> list[str]:
    """Return the methods, or families of tasks, that have a setting; none for other settings."""
    group = name.partition(".")[0]
    variants = []
    for variant, schema in _variants(group).items():
        if name in _names_in(schema, f"{group}."):
            variants.append(variant)
    return variants


def _names_in(schema: Any, prefix: str) -> Iterator[str]:
    for field in dataclasses.fields(schema):
        yield from _names_of(schema, field.name, prefix)


def _names_of(schema: type, name: str, prefix: str) -> Iterator[str]:
    """Yield a field's name, or those in the dataclass that it holds."""
    kind = setting_types(schema)[name]
    if dataclasses.is_dataclass(kind):
        yield from _names_in(kind, f"{prefix}{name}.")
    else:
        yield f"{prefix}{name}"


def as_markdown() -> str:
    """Return docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "    dynarank train task=cola budget.target=4 optimizer.lr=1e-3",
        "",
        "Every setting of a run, as `dynarank train --help settings` lists them. This page is made",
        "from the schema by `make docs`. A file in conf/ may hold another value than the default",
        "shown here: `dynarank train OVERRIDES --cfg job` prints the values of a run.",
    ]
    group = None
    for setting in describe_settings():
        prefix = setting.name.partition(".")[0] if "." in setting.name else ""
        if prefix != group:
            group = prefix
            lines += ["", f"## {prefix or 'The run'}", ""]
            lines += ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
        of = f" ({setting.variant})" if setting.variant else ""
        cells = [f"`{setting.name}`{of}", setting.type, f"`{setting.default}`", setting.meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def as_text() -> str:
    """Return the list that `--help settings` prints."""
    lines = []
    for setting in describe_settings():
        of = f" ({setting.variant})" if setting.variant else ""
        default = "required" if setting.default == REQUIRED else f"default {setting.default}"
        lines.append(f"{setting.name}{of}: {setting.type}, {default}")
        if setting.meaning:
            lines.append(f"    {setting.meaning}")
    return "\n".join(lines)


def _variants(name: str) -> dict[str, type]:
    """Return the schemas that a group's files choose from, by the variant's name."""
    prefix = f"{name}/"
    return {
        path.removeprefix(prefix): schema
        for path, schema in SCHEMAS.items()
        if path.startswith(prefix)
    }


def _without_repetition(of_variant: dict[str, list[Setting]]) -> list[Setting]:
    """Return what all variants have alike once, and everything else with its variant's name."""
    alike = set.intersection(*(set(settings) for settings in of_variant.values()))
    # A dict and not a set, since it keeps the schema's order.
    result: dict[Setting, None] = {}
    for variant, settings in of_variant.items():
        for setting in settings:
            known = setting in alike
            result[setting if known else dataclasses.replace(setting, variant=variant)] = None
    return list(result)


def _describe_all(schema: Any, prefix: str) -> Iterator[Setting]:
    for field in dataclasses.fields(schema):
        yield from _describe(schema, field, prefix)


def _describe(schema: type, field: dataclasses.Field[Any], prefix: str) -> Iterator[Setting]:
    """Yield a field's settings: itself, or those of the dataclass that it holds."""
    kind = setting_types(schema)[field.name]
    if dataclasses.is_dataclass(kind):
        yield from _describe_all(kind, f"{prefix}{field.name}.")
        return
    factory = field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory()
    rules = [str(rule) for rule in setting_rules(schema)[field.name] if str(rule) != "a path"]
    type_and_range = _type_name(kind)
    if rules:
        type_and_range += ", " + " and ".join(rules)
    yield Setting(
        name=prefix + field.name,
        type=type_and_range,
        default=_as_yaml(default),
        meaning=_meanings(schema).get(field.name, ""),
    )


def _type_name(kind: Any) -> str:
    """Return a type in a user's words: `int | None` is "int or null"."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_type_name(part) for part in get_args(kind))
    if kind is type(None):
        return "null"
    if get_origin(kind) is list:
        return f"list of {_type_name(get_args(kind)[0])}"
    return {"str": "text", "bool": "true or false"}.get(kind.__name__, kind.__name__)


def _as_yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_as_yaml(part) for part in value)}]"
    return str(value) if str(value) else "''"


@cache
def _meanings(schema: type) -> dict[str, str]:
    """Return the text under each field of a dataclass and of those that it extends, by field."""
    meanings: dict[str, str] = {}
    # The class itself comes last, for what it says of a field counts.
    for kind in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(kind):
            continue
        # Python does not keep the text under a field, so that it is read from the source.
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and _is_text(following):
                assert isinstance(statement.target, ast.Name)
                text = ast.literal_eval(following.value)  # type: ignore[attr-defined]
                meanings[statement.target.id] = " ".join(text.split())
    return meanings


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(as_markdown(), encoding="utf-8")
