"""Small visible registries: a name, and where the class behind it lives.

The class is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from dynarank.errors import UserError, nearest


def lookup(field: str, name: str, registry: Mapping[str, str]) -> Any:
    """Return the class that is registered under a name.

    Args:
        field: the setting that the name came from, for errors.
        registry: "module:Class" by name.

    Raises:
        UserError: the name is not in the registry; the message gives the nearest names.
    """
    if name not in registry:
        raise UserError(f"{field} = {name!r} is not known. {nearest(name, registry)}")
    module, _, attribute = registry[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
