"""Keys that a composed configuration has and the schema lacks."""

from __future__ import annotations

import dataclasses
from typing import Any

from dynarank.errors import UserError, nearest


def refuse_unknown(composed: Any, prefix: str = "") -> None:
    """Refuse a key that the schema lacks: `+key=value` adds one, and nothing would read it.

    Raises:
        UserError: the message names the nearest settings.
    """
    from omegaconf import DictConfig, OmegaConf

    schema: Any = OmegaConf.get_type(composed)
    known = [entry.name for entry in dataclasses.fields(schema)]
    for key in composed:
        if key not in known:
            raise UserError(f"{prefix}{key} is not a setting. {nearest(key, known)}")
        child = composed._get_node(key)
        # A null in the place of a group is a DictConfig, too.
        if isinstance(child, DictConfig) and not child._is_none():
            refuse_unknown(child, f"{prefix}{key}.")
