"""Find PEFT's LoRA layers in a model, and the adapter that is meant."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import peft
from peft.tuners.lora import LoraLayer
from torch import nn

from dynarank.adapters.wrappers import unwrapped_model
from dynarank.errors import nearest


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Return PEFT's LoRA layers by the names that their base layers have in the base model."""
    root = base_model(model)
    return {name: module for name, module in root.named_modules() if isinstance(module, LoraLayer)}


def base_model(model: nn.Module) -> nn.Module:
    """Return the model in which PEFT put its layers, also inside a wrapper of torch's."""
    model = unwrapped_model(model)
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


def _names(of_layers: Iterable[Iterable[str]]) -> list[str]:
    """Return all names, each once, in the order in which they come."""
    return list(dict.fromkeys(chain.from_iterable(of_layers)))


def adapter_to_gate(layers: dict[str, Any], adapter: str | None) -> str:
    """Return the adapter that is meant: the named one, or the only active one."""
    if not layers:
        raise ValueError(
            "the model has no LoRA layers of PEFT: make it with peft.get_peft_model(model, "
            "peft.LoraConfig(...)) first"
        )
    # PEFT's `r` of a layer is a dict, with an entry for each adapter.
    present = _names(layer.r for layer in layers.values())
    if adapter is not None:
        if adapter not in present:
            raise ValueError(f"the model has no adapter {adapter!r}. {nearest(adapter, present)}")
        return adapter
    active = _names(layer.active_adapters for layer in layers.values())
    if len(active) != 1:
        raise ValueError(
            f"{len(active)} adapters are active: give adapter=..., one of {', '.join(present)}"
        )
    return str(active[0])
