"""Dynamic ranks on PEFT's own LoRA models.

    from dynarank.integrations.peft import DynaRankConfig, finalize, get_peft_model, make_allocator

    model = get_peft_model(base, DynaRankConfig(target=4, target_modules=["q_proj", "v_proj"]))
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    make_allocator(model, total=1000).attach(optimizer, eta=0.1)
    ...                      # the training loop, of 1000 optimizer steps
    finalize(model)
    model.save_pretrained("adapter")

The model stays PEFT's, with `peft_type` LORA. What is saved at any moment is a plain LoRA adapter,
which needs this package neither to load nor to run. See `dynarank.integrations.gate` for how.
"""

from __future__ import annotations

from typing import Any

import peft
from torch import nn

from dynarank.allocation.allocator import RankAllocator
from dynarank.integrations.adding_gates import add_gates
from dynarank.integrations.finalizing import finalize
from dynarank.integrations.gate import GatedLayer, find_gate
from dynarank.integrations.lora_layers import lora_layers
from dynarank.integrations.peft_config import DynaRankConfig
from dynarank.integrations.settings import settings_from

__all__ = [
    "DynaRankConfig",
    "attach",
    "finalize",
    "gated_layers",
    "get_peft_model",
    "make_allocator",
]


def get_peft_model(
    model: nn.Module, config: DynaRankConfig, adapter_name: str = "default", **options: Any
) -> Any:
    """Return PEFT's model of `model` with LoRA layers that can be pruned.

    Use it in place of `peft.get_peft_model`. The model computes the same as before.

    Args:
        model: any model that PEFT adapts; changed in place.
        config: PEFT's settings and the allocation's.
        adapter_name: PEFT's name of the adapter.
        options: further arguments of `peft.get_peft_model`.

    Returns:
        PEFT's own `PeftModel`.

    Raises:
        ValueError: as `attach`.

    Examples:
        >>> from torch import nn
        >>> from dynarank.integrations.peft import DynaRankConfig, get_peft_model
        >>> base = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> model = get_peft_model(base, DynaRankConfig(target=2, target_modules=["0"]))
        >>> model.print_trainable_parameters()  # A (3, 8), B (8, 3) and c (3)
        trainable params: 51 || all params: 141 || trainable%: 36.1702
    """
    peft_model = peft.get_peft_model(model, config.plain(), adapter_name=adapter_name, **options)
    settings = config.allocation()
    add_gates(peft_model, settings, adapter=adapter_name, start=config.start)
    return peft_model


def attach(
    model: nn.Module,
    target: float | None = None,
    init: int | None = None,
    adapter: str | None = None,
    start: str = "paper",
    **settings: Any,
) -> dict[str, GatedLayer]:
    """Make the LoRA layers of a PEFT model prunable.

    It works on what `peft.get_peft_model`, a model's `add_adapter` and `inject_adapter_in_model`
    make, for every kind of base layer that PEFT adapts with matrices, quantized ones included. Call
    it before the optimizer is made: each layer gets new parameters, its coefficients c.

    Args:
        model: a model with LoRA layers of PEFT; changed in place.
        target: the mean number of components that a layer keeps at the end. With it,
            `make_allocator` and the callbacks need no settings of their own.
        init: components that a layer starts with. It is PEFT's r, and refused where it is not.
        adapter: the adapter's name; needed where a layer has several active ones.
        start: `paper` draws A and B anew and sets c = 0; `lora` keeps A and B and sets c = 1;
            `orthogonal` draws directions of length one at right angles, and sets c = 0;
            `orthogonal_A` draws those of A alone, keeps B = 0, and fixes c at 1.
            Either leaves the model's outputs as they were.
        settings: other fields of `AllocationSettings`: warmup, final, interval, score, ...

    Returns:
        the layers by module name, in model order, as a `RankAllocator` takes them.

    Raises:
        ValueError: the model has no such adapter, or one that is gated already, merged, trained
            (with `paper`), or of a kind that has no matrices A and B; or a setting is out of range.

    Examples:
        >>> import peft
        >>> from torch import nn
        >>> from dynarank import BudgetSchedule, RankAllocator
        >>> from dynarank.integrations.peft import attach
        >>> base = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> model = peft.get_peft_model(base, peft.LoraConfig(r=3, target_modules=["0"]))
        >>> layers = attach(model, target=2)
        >>> list(layers)
        ['0']
        >>> allocator = RankAllocator(layers, BudgetSchedule(init=3, target=2, total=1000))
    """
    checked = settings_from(target, settings)
    return add_gates(model, checked, adapter=adapter, start=start, init=init)


def gated_layers(model: nn.Module, adapter: str | None = None) -> dict[str, GatedLayer]:
    """Return the model's prunable layers by module name, in model order.

    Args:
        model: a model of `get_peft_model` or `attach`. Any other has none.
        adapter: the adapter's name; None for the only one that is attached.

    Raises:
        ValueError: several adapters are attached, and none is named.

    Examples:
        >>> from torch import nn
        >>> from dynarank.integrations.peft import DynaRankConfig, gated_layers, get_peft_model
        >>> base = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> config = DynaRankConfig(target=2, target_modules=["0"], start="lora")
        >>> layers = gated_layers(get_peft_model(base, config))
        >>> {name: int(layer.active().sum()) for name, layer in layers.items()}
        {'0': 3}
    """
    layers: dict[str, GatedLayer] = {}
    adapters: dict[str, None] = {}  # a set that keeps its order
    for name, layer in lora_layers(model).items():
        for key, linear in layer.lora_A.items():
            if find_gate(linear) is not None and adapter in (None, key):
                layers[name] = GatedLayer(layer, key)
                adapters[key] = None
    if len(adapters) > 1:
        names = list(adapters)
        raise ValueError(f"several adapters are attached: give adapter=..., one of {names}")
    return layers


def make_allocator(model: nn.Module, total: int, adapter: str | None = None) -> RankAllocator:
    """Return an allocator with the settings that `get_peft_model` or `attach` was given.

    Args:
        model: a model of `get_peft_model` or `attach`.
        total: the optimizer steps of the whole run.
        adapter: the adapter's name; None for the only one that is attached.

    Raises:
        ValueError: the model is not attached, or was attached without a target.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from dynarank.integrations.peft import (
        ...     DynaRankConfig, finalize, get_peft_model, make_allocator)
        >>> base = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> config = DynaRankConfig(target=2, target_modules=["0", "2"])
        >>> model = get_peft_model(base, config)
        >>> optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
        >>> attachment = make_allocator(model, total=100).attach(optimizer, eta=0.1)
        >>> for step in range(100):
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()  # scores, prunes and freezes by itself
        ...     optimizer.zero_grad()
        >>> ranks = finalize(model)  # plain LoRA from here on
        >>> sum(ranks.values())
        4
    """
    layers = gated_layers(model, adapter)
    if not layers:
        raise ValueError("the model has no gated layers: call attach(model, target=...) first")
    # One call gates all layers of an adapter, so that the first has the settings of all.
    settings = next(iter(layers.values())).gate.settings
    if settings is None:
        raise ValueError("attach(model) was given no target: give attach(model, target=...)")
    return settings.allocator(layers, total=total)
