"""Small visible registries: a name, and where the class behind it lives. Imported only when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from dynarank.errors import UserError, nearest


def lookup(field: str, name: str, registry: Mapping[str, str]) -> Any:
    """The class registered under `name` as "module:Class". Raises `UserError` with the nearest names."""
    if name not in registry:
        raise UserError(f"{field} = {name!r} is not known. {nearest(name, registry)}")
    module, _, attribute = registry[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
