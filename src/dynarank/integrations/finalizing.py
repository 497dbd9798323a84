"""Turn a gated PEFT model into plain LoRA of the ranks that it kept.

Legend: k components that a layer kept, A (k, d_in) with c folded in, B (d_out, k), s PEFT's scale.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from dynarank.adapters.inject import replace_module
from dynarank.adapters.progress import check_at_budget
from dynarank.adapters.wrappers import unwrapped_model
from dynarank.integrations.gate import GatedLayer, find_gate, remove_gate
from dynarank.integrations.lora_layers import base_model, lora_layers


@torch.no_grad()
def finalize(
    model: nn.Module, adapter: str | None = None, over_budget: bool = False
) -> dict[str, int]:
    """Cut a gated PEFT model to its kept components, in place: it is plain LoRA afterwards.

    c is folded into A and s into B. Layers of rank 0 lose the adapter. The adapter's config gets
    the ranks: `r`, `lora_alpha`, `rank_pattern`, `alpha_pattern`, `target_modules`. Outputs stay as
    they were, but for rounding. The factors are new parameters: make a new optimizer to train on.

    Args:
        model: a model of `get_peft_model` or `attach`, trained until its ranks are frozen; also in
            a wrapper of torch's, as `torch.compile`'s.
        adapter: the adapter's name; None: all that are gated, of which the ranks of the last are
            returned.
        over_budget: whether to cut although the ranks are not final.

    Returns:
        the ranks by module name, in model order; 0 for a layer that lost its adapter.

    Raises:
        ValueError: the model is not gated, only a part of it is PEFT's, its ranks are not final, or
            all of them are 0. The model is left as it was then.

    Examples:
        >>> import tempfile
        >>> from torch import nn
        >>> from dynarank.integrations.peft import DynaRankConfig, finalize, get_peft_model
        >>> base = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> config = DynaRankConfig(target=2, target_modules=["0"], start="lora")
        >>> model = get_peft_model(base, config)  # then train; see `make_allocator`
        >>> finalize(model)
        {'0': 3}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)  # whoever loads it needs PEFT alone
    """
    model = unwrapped_model(model)
    root = base_model(model)
    gated = _gated_by_adapter(model, adapter)
    if not gated:
        raise ValueError("there is nothing to finalize: the model has no gated LoRA layers")
    _check_is_pefts(model)
    # All adapters are checked before the first is cut, so that a refusal changes nothing.
    for layers in gated.values():
        if not over_budget:
            check_at_budget(layers.values())
        if all(_is_empty(layer) for layer in layers.values()):
            raise ValueError("every layer has rank 0: no adapter would be left")
    for adapter_name, layers in gated.items():
        ranks = {name: _cut(layer) for name, layer in layers.items()}
        _write_config(model, root, adapter_name, ranks)
        for name, gated_layer in layers.items():
            if not gated_layer.layer.r:  # no adapter is left in it
                replace_module(root, name, gated_layer.layer.get_base_layer())
    return ranks


def _check_is_pefts(model: nn.Module) -> None:
    """Raise `ValueError` where the model that PEFT made is only a part of this one."""
    if hasattr(model, "peft_config"):
        return
    parts = [name for name, part in model.named_modules() if hasattr(part, "peft_config")]
    part = f", its part {parts[0]!r}" if parts else ""
    raise ValueError(
        f"{type(model).__name__} is no model of PEFT, and has no peft_config to write the ranks "
        f"into. Give finalize the model that PEFT made{part}"
    )


def _gated_by_adapter(model: nn.Module, adapter: str | None) -> dict[str, dict[str, GatedLayer]]:
    """Return the gated layers by adapter and module name; None means every adapter."""
    gated: dict[str, dict[str, GatedLayer]] = {}
    for name, layer in lora_layers(model).items():
        for adapter_name, linear in layer.lora_A.items():
            if find_gate(linear) is not None and adapter in (None, adapter_name):
                gated.setdefault(adapter_name, {})[name] = GatedLayer(layer, adapter_name)
    return gated


def _is_empty(layer: GatedLayer) -> bool:
    return not bool(layer.active().any())


def _cut(gated: GatedLayer) -> int:
    """Cut one layer to its kept components; return their number."""
    layer, adapter = gated.layer, gated.adapter
    kept = gated.active().nonzero().flatten()
    scale = gated.scaling
    A, B = layer.lora_A[adapter], layer.lora_B[adapter]
    remove_gate(A, B)
    rank = len(kept)
    if rank == 0:
        _forget(layer, adapter)
        return 0
    trained = A.weight.requires_grad
    kept_A = A.weight.index_select(0, kept)  # c is in it: `remove_gate` folded it
    kept_B = B.weight.index_select(1, kept) * scale
    A.weight = nn.Parameter(kept_A, requires_grad=trained)
    B.weight = nn.Parameter(kept_B, requires_grad=trained)
    A.out_features = B.in_features = rank
    # alpha / r is one: s is in B now.
    layer.r[adapter] = layer.lora_alpha[adapter] = rank
    layer.scaling[adapter] = 1.0
    # rsLoRA's scale, alpha over the root of r, would not be 1.
    layer.use_rslora[adapter] = False
    return rank


def _forget(layer: Any, adapter: str) -> None:
    """Take an adapter out of one layer.

    PEFT's `delete_adapter` would activate another adapter in this layer alone.
    """
    # PEFT's own lists of what a layer keeps for each adapter.
    for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
        entries = getattr(layer, attribute)
        if adapter in entries:
            del entries[adapter]


def _write_config(model: nn.Module, root: nn.Module, adapter: str, ranks: dict[str, int]) -> None:
    """Write the ranks into the adapter's config, as PEFT reads them when it loads the adapter."""
    config: Any = model.peft_config[adapter]  # type: ignore[index]
    kept = {name: rank for name, rank in ranks.items() if rank}
    # PEFT reads the patterns' keys as regular expressions.
    # It finds them behind any dot too, as in `attention.output.dense`, which ^ forbids.
    pattern = {"^" + re.escape(name): rank for name, rank in kept.items()}
    config.r = config.lora_alpha = max(kept.values())
    config.rank_pattern = dict(pattern)
    config.alpha_pattern = dict(pattern)
    config.use_rslora = False
    config.target_modules = _targets(kept, [name for name, _ in root.named_modules()])
    # The targets name the kept layers and no others, so that nothing is left to exclude.
    config.exclude_modules = None
    # The targets are whole names of layers now, which these would choose from again.
    config.layers_to_transform = None
    config.layers_pattern = None


def _targets(kept: Iterable[str], modules: Iterable[str]) -> set[str] | str:
    """Return what names the kept modules and no others: a set, or an expression.

    PEFT takes each entry of a set for the end of a module's name, too.
    """
    names = set(kept)
    ends = tuple("." + name for name in names)
    also_meant = [name for name in modules if name not in names and name.endswith(ends)]
    if not also_meant:
        return names
    # PEFT matches a string, unlike a set's entries, with the whole name.
    return "|".join(re.escape(name) for name in sorted(names))
