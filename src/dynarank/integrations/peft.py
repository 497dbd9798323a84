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

import math
import warnings
from dataclasses import dataclass, fields
from typing import Any

import peft
import torch
from peft.tuners.lora import ParamWrapper
from peft.tuners.lora.layer import MultiheadAttention
from torch import nn

from dynarank.adapters import STARTS
from dynarank.adapters.linears import keep_differentiable
from dynarank.allocation.allocator import RankAllocator
from dynarank.integrations.finalizing import finalize
from dynarank.integrations.gate import GatedLayer, add_gate, find_gate
from dynarank.integrations.lora_layers import adapter_to_gate, lora_layers
from dynarank.integrations.settings import AllocationSettings, settings_from
from dynarank.integrations.sharding import check_local

__all__ = [
    "DynaRankConfig",
    "attach",
    "finalize",
    "gated_layers",
    "get_peft_model",
    "make_allocator",
]


@dataclass
class DynaRankConfig(AllocationSettings, peft.LoraConfig):  # type: ignore[misc]
    """PEFT's `LoraConfig` with the settings of an allocation.

        config = DynaRankConfig(target=4, target_modules="all-linear", lora_alpha=8)
        model = get_peft_model(base, config)

    `r` is what a layer starts with: ceil(1.5 target) by default. All of LoraConfig's settings are
    there, and those of `AllocationSettings`. The latter and `start` are never saved: an adapter's
    file is a LoraConfig's.

    Raises:
        ValueError: a setting is out of its range, or target is above r.
    """

    r: int | None = None
    start: str = "paper"
    """`paper`: A and B are random and c = 0. `lora`: as LoRA starts, with B = 0 and c = 1."""

    def __post_init__(self) -> None:
        self.allocation()  # checks them, before r is made of the target
        if self.r is None:
            self.r = math.ceil(1.5 * self.target)
        # By name: super() would reach AllocationSettings alone.
        peft.LoraConfig.__post_init__(self)
        largest = max([self.r, *(self.rank_pattern or {}).values()])
        if self.target > largest:
            raise ValueError(
                f"target = {self.target:g} is above r = {largest}: pruning only takes away. Give "
                f"r = {math.ceil(1.5 * self.target)}, or a smaller target"
            )

    def allocation(self) -> AllocationSettings:
        """Return the allocation's settings."""
        names = [field.name for field in fields(AllocationSettings)]
        return AllocationSettings(**{name: getattr(self, name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """Return LoraConfig's settings alone, which is what is saved."""
        own = own_settings()
        return {name: value for name, value in super().to_dict().items() if name not in own}

    def plain(self) -> peft.LoraConfig:
        """Return the same as a LoraConfig."""
        # Not made of its values: LoraConfig has attributes that its constructor does not take.
        config = peft.LoraConfig()
        own = own_settings()
        for name, value in vars(self).items():
            if name not in own:
                setattr(config, name, value)
        return config


def own_settings() -> set[str]:
    """Return the names of the settings that `DynaRankConfig` has and LoraConfig has not."""
    plain = {field.name for field in fields(peft.LoraConfig)}
    return {field.name for field in fields(DynaRankConfig)} - plain


def get_peft_model(
    model: nn.Module, config: DynaRankConfig, adapter_name: str = "default", **options: Any
) -> Any:
    """Return PEFT's model of `model` with gated LoRA layers; it starts equal to `model`.

        model = get_peft_model(base, DynaRankConfig(target=4, target_modules=["query", "value"]))

    `options` are those of `peft.get_peft_model`.

    Raises:
        ValueError: as `attach`.
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
    """Make the LoRA layers of a PEFT model prunable; return them by module name, in model order.

        model = peft.get_peft_model(base, peft.LoraConfig(r=6, target_modules=["query", "value"]))
        layers = attach(model, target=4)
        allocator = RankAllocator(layers, BudgetSchedule(init=6, target=4, total=1000))

    It works on what `peft.get_peft_model`, a model's `add_adapter` and `inject_adapter_in_model`
    make, for every kind of base layer that PEFT adapts with matrices, quantized ones included. Call
    it before the optimizer is made: each layer gets new parameters, its coefficients c.

    Args:
        target: the mean number of components that a layer keeps. With it, `make_allocator` and the
            callbacks need no settings of their own.
        init: what a layer starts with. It is PEFT's r, and refused where it is not.
        adapter: the adapter's name; needed where a layer has several active ones.
        start: `paper` draws A and B anew and sets c = 0; `lora` keeps A and B and sets c = 1.
            Either leaves the model's outputs as they were.
        settings: others of `AllocationSettings`.

    Raises:
        ValueError: the model has no such adapter, or one that is gated already, merged, trained
            (with `paper`), or of a kind that has no matrices A and B; or a setting is out of range.
    """
    checked = settings_from(target, settings)
    return add_gates(model, checked, adapter=adapter, start=start, init=init)


def add_gates(
    model: nn.Module,
    settings: AllocationSettings | None,
    adapter: str | None,
    start: str,
    init: int | None = None,
) -> dict[str, GatedLayer]:
    """Put gates on an adapter's layers, once all of them are known to be fit for it."""
    if start not in STARTS:
        raise ValueError(f"start = {start!r}: must be one of {', '.join(STARTS)}")
    found = lora_layers(model)
    name = adapter_to_gate(found, adapter)
    members = {key: layer for key, layer in found.items() if _has(layer, name)}
    for key, layer in members.items():
        _check_layer(key, layer, name, start)
    sizes = [layer.r[name] for layer in members.values()]
    size = sum(sizes) / len(sizes)
    if init not in (None, size):
        raise ValueError(
            f"init = {init}, but the LoRA layers have r = {size:g}. Give both the same"
        )
    if settings is not None:
        _check_target(settings.target, size)
    keep_differentiable(model)
    for layer in members.values():
        _gate_layer(layer, name, start, settings)
    return {key: GatedLayer(layer, name) for key, layer in members.items()}


def _has(layer: Any, adapter: str) -> bool:
    return adapter in layer.r


def _check_layer(name: str, layer: Any, adapter: str, start: str) -> None:
    if isinstance(layer, MultiheadAttention):
        raise ValueError(
            f"{name}: PEFT adapts an nn.MultiheadAttention in two parts of one rank, which dynamic "
            "ranks would part, so that PEFT could not load it. Leave it out of target_modules"
        )
    factors = dict(layer.lora_A.items())  # a ModuleDict has no get()
    A = factors.get(adapter)
    is_matrix = isinstance(A, nn.Linear) and not isinstance(layer, ParamWrapper)
    if not is_matrix or adapter in layer.lora_variant or layer.lora_bias.get(adapter):
        raise ValueError(
            f"{name}: {type(layer).__name__} with these settings has no plain matrices A and B. "
            "Dynamic ranks need LoRA on linear layers, without use_dora, lora_bias and other "
            "variants. Leave it out of target_modules"
        )
    assert isinstance(A, nn.Linear)
    if find_gate(A) is not None:
        raise ValueError(f"{name}: adapter {adapter!r} is attached already")
    if layer.merged:
        raise ValueError(f"{name}: the adapter is merged. Call unmerge_adapter() first")
    check_local(name, A.weight, layer.lora_B[adapter].weight, rank=layer.r[adapter])
    if start == "paper" and bool(layer.lora_B[adapter].weight.any()):
        raise ValueError(
            f"{name}: B is not zero, so that the adapter is trained or has an initialization of "
            "its own, which start='paper' would lose. Pass start='lora' to keep it"
        )


def _check_target(target: float, size: float) -> None:
    if target > size:
        raise ValueError(
            f"target = {target:g}, but the LoRA layers have r = {size:g}: pruning only takes "
            f"away. Give LoraConfig r = {math.ceil(1.5 * target)}, or a smaller target"
        )
    if target == size:
        warnings.warn(
            f"target = r = {size:g}: nothing will be pruned. Give LoraConfig a larger r, "
            f"{math.ceil(1.5 * target)} for example",
            # The line of the user's that called `attach` or `get_peft_model`.
            stacklevel=4,
        )


@torch.no_grad()
def _gate_layer(layer: Any, adapter: str, start: str, settings: AllocationSettings | None) -> None:
    A, B = layer.lora_A[adapter], layer.lora_B[adapter]
    for factor in (A.weight, B.weight):  # in bfloat16, c and small updates would be rounded away
        factor.data = factor.data.float()
    if start == "paper":
        # B may be random too: with c = 0 the model still starts as it was.
        nn.init.kaiming_uniform_(A.weight)
        nn.init.kaiming_uniform_(B.weight)
    add_gate(A, B, c=0.0 if start == "paper" else 1.0, settings=settings)


def gated_layers(model: nn.Module, adapter: str | None = None) -> dict[str, GatedLayer]:
    """Return the model's gated layers by module name; of one adapter, or of the only gated one.

        layers = gated_layers(model)
        print({name: int(layer.active().sum()) for name, layer in layers.items()})

    Raises:
        ValueError: several adapters are gated, and none is named.
    """
    found = []
    for name, layer in lora_layers(model).items():
        for key, linear in layer.lora_A.items():
            if find_gate(linear) is not None and adapter in (None, key):
                found.append((name, key, layer))
    adapters = list(dict.fromkeys(key for _, key, _ in found))
    if len(adapters) > 1:
        raise ValueError(f"several adapters are attached: give adapter=..., one of {adapters}")
    return {name: GatedLayer(layer, key) for name, key, layer in found}


def make_allocator(model: nn.Module, total: int, adapter: str | None = None) -> RankAllocator:
    """Return an allocator with the settings that the model was attached with.

        attach(model, target=4)
        allocator = make_allocator(model, total=len(loader) * epochs)
        allocator.attach(optimizer, eta=0.1)

    Args:
        total: the optimizer steps of the whole run.

    Raises:
        ValueError: the model is not attached, or was attached without a target.
    """
    layers = gated_layers(model, adapter)
    if not layers:
        raise ValueError("the model has no gated layers: call attach(model, target=...) first")
    settings = next(iter(layers.values())).gate.settings
    if settings is None:
        raise ValueError("attach(model) was given no target: give attach(model, target=...)")
    return settings.allocator(layers, total=total)
