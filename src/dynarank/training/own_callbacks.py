"""Callbacks of the user's own, by name: those that the environment allows, and no others.

A configuration may come from somebody else, and to build a class runs its code. So what a
configuration may name stands in an environment variable, which no configuration can set.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence

from lightning.pytorch.callbacks import Callback

from dynarank.errors import UserError, kind_and_first_line

ALLOWED = "DYNARANK_CALLBACKS"
"""The environment variable with the names that are allowed, MODULE.CLASS, separated by commas."""


def build_callbacks(names: Sequence[str]) -> list[Callback]:
    """Return a callback for each name, made without arguments.

    Raises:
        UserError: a name is not allowed, or is no callback.
    """
    allowed = [name.strip() for name in os.environ.get(ALLOWED, "").split(",") if name.strip()]
    callbacks = []
    for name in names:
        if name not in allowed:
            raise UserError(
                f"trainer.callbacks = {name}: is not allowed, for it runs code. If you trust it, "
                f"name it in the environment: {ALLOWED}={','.join([*allowed, name])}"
            )
        callbacks.append(_build(name))
    return callbacks


def _build(name: str) -> Callback:
    module, _, attribute = name.rpartition(".")
    try:
        made = getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # the user's module may raise anything
        raise UserError(
            f"trainer.callbacks = {name}: cannot be made ({kind_and_first_line(error)}). It must "
            "be MODULE.CLASS of a module that Python finds, and take no arguments"
        ) from error
    if not isinstance(made, Callback):
        raise UserError(f"trainer.callbacks = {name}: is no lightning.pytorch.callbacks.Callback")
    return made
