"""Put gates on the LoRA layers of a PEFT model, after checking that all of them can take one."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from peft.tuners.lora import ParamWrapper
from peft.tuners.lora.layer import MultiheadAttention
from torch import nn

from dynarank.adapters import STARTS
from dynarank.adapters.linears import keep_differentiable
from dynarank.integrations.gate import GatedLayer, add_gate, find_gate
from dynarank.integrations.lora_layers import adapter_to_gate, lora_layers
from dynarank.integrations.settings import AllocationSettings
from dynarank.integrations.sharding import check_local


def add_gates(
    model: nn.Module,
    settings: AllocationSettings | None,
    adapter: str | None,
    start: str,
    init: int | None = None,
) -> dict[str, GatedLayer]:
    """Put gates on an adapter's layers; return them by module name, in model order.

    All layers are checked before the first is changed. The arguments are those of
    `dynarank.integrations.peft.attach`, but for `settings`, which the gates remember.

    Raises:
        ValueError: as `attach`. The model is left as it was then.
    """
    if start not in STARTS:
        raise ValueError(f"start = {start!r}: must be one of {', '.join(STARTS)}")
    if start == "orthogonal_A" and settings is not None and settings.score == "sensitivity":
        raise ValueError(
            f"score = 'sensitivity' needs the gradient of c, which start={start!r} fixes. Take "
            "score='fisher', or another start"
        )
    all_layers = lora_layers(model)
    adapter_name = adapter_to_gate(all_layers, adapter)
    layers: dict[str, Any] = {}
    for name, layer in all_layers.items():
        if adapter_name in layer.r:
            layers[name] = layer
    for name, layer in layers.items():
        _check_layer(name, layer, adapter_name, start)
    sizes = [layer.r[adapter_name] for layer in layers.values()]
    # The mean, since PEFT's rank_pattern may give layers another r.
    mean_size = sum(sizes) / len(sizes)
    if init not in (None, mean_size):
        raise ValueError(
            f"init = {init}, but the LoRA layers have r = {mean_size:g}. Give both the same"
        )
    if settings is not None:
        _check_target(settings.target, mean_size)
    keep_differentiable(model)
    for layer in layers.values():
        _gate_layer(layer, adapter_name, start, settings)
    return {name: GatedLayer(layer, adapter_name) for name, layer in layers.items()}


def _check_layer(name: str, layer: Any, adapter: str, start: str) -> None:
    """Raise `ValueError` where a LoRA layer can have no gate."""
    if isinstance(layer, MultiheadAttention):
        raise ValueError(
            f"{name}: PEFT adapts an nn.MultiheadAttention in two parts of one rank, which dynamic "
            "ranks would part, so that PEFT could not load it. Leave it out of target_modules"
        )
    factors = dict(layer.lora_A.items())  # a ModuleDict has no get()
    A = factors.get(adapter)
    is_matrix = isinstance(A, nn.Linear) and not isinstance(layer, ParamWrapper)
    is_variant = adapter in layer.lora_variant or layer.lora_bias.get(adapter)
    if not is_matrix or is_variant:
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
    if start != "lora" and bool(layer.lora_B[adapter].weight.any()):
        raise ValueError(
            f"{name}: B is not zero, so that the adapter is trained or has an initialization of "
            f"its own, which start={start!r} would lose. Pass start='lora' to keep it"
        )


def _check_target(target: float, size: float) -> None:
    """Refuse a target above the layers' mean r; warn where nothing would be pruned."""
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
        # By `.data`: an optimizer that has the parameter already still trains it.
        factor.data = factor.data.float()
    # With c = 0 the model starts as it was, whatever A and B are.
    drawn = {"paper": [A, B], "lora": [], "orthogonal": [A, B], "orthogonal_A": [A]}[start]
    fill = nn.init.kaiming_uniform_ if start == "paper" else nn.init.orthogonal_
    for factor in drawn:
        fill(factor.weight)
    c = 0.0 if B in drawn else 1.0
    add_gate(A, B, c=c, settings=settings, trains_c=start != "orthogonal_A")
