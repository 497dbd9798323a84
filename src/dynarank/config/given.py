"""Which settings a user gave: on the command line, or in configuration files of their own.

Defaults, and what the project's own files set, are not among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dynarank.config.hints import NUMBER_OF_GROUP

SWEPT = "hydra.sweeper.params."
"""How the name of what a file sweeps begins."""
# Of the whole process: `guarded` empties it at each composition, and fills it file by file.
_in_files: dict[str, str] = {}


def forget_files() -> None:
    """Forget what files gave: a new configuration is composed."""
    _in_files.clear()


def note_file(values: Iterable[tuple[str, Any]], file: str) -> None:
    """Note the settings that a user's file gives; the last file counts.

    Hydra keeps no record of them, and has no place for one.

    Args:
        values: dotted names with their values.
        file: its name, as messages have it.
    """
    for name, value in values:
        setting = name.removeprefix(SWEPT)
        if not setting.startswith("hydra."):
            _in_files[setting] = f"{setting}={value} in {file}"


def given_settings(overrides: Iterable[str]) -> Mapping[str, str]:
    """Return the settings that were given, by dotted name, each as it was given.

    Args:
        overrides: what was typed. A choice of a group counts as the setting that the group is
            about, as `dem=paper` does as `dem.eta`.
    """
    given = dict(_in_files)
    for override in overrides:
        name, sign, _ = override.lstrip("+").partition("=")
        if sign:
            given[NUMBER_OF_GROUP.get(name, name)] = override
    return given
