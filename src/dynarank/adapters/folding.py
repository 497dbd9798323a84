"""Fold a layer's components into plain LoRA factors, or merge them into the base weights.

Torch only. Legend: k components that a layer kept, A (k, d_in), B (d_out, k), s = alpha / r'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynarank.adapters.inject import adapter_layers
from dynarank.adapters.layer import DoRALinear, stores_transposed
from dynarank.adapters.linears import weight_holders
from dynarank.adapters.progress import check_at_budget

Factors = tuple[Tensor, Tensor]
"""A (k, d_in) and B (d_out, k)."""


@torch.no_grad()
def fold(layer: DoRALinear) -> Factors:
    """Return a layer's nonzero components as LoRA factors with scale 1.

    Args:
        layer: a layer of `inject`. It is not changed.

    Returns:
        A (k, d_in), a copy of the kept rows, and B (d_out, k), with s and c multiplied in. The
        layer's update is B A.

    Examples:
        >>> import torch
        >>> from dynarank import DoRALinear, fold
        >>> layer = DoRALinear(torch.nn.Linear(8, 4), r=3, start="lora")
        >>> A, B = fold(layer)
        >>> A.shape, B.shape
        (torch.Size([3, 8]), torch.Size([4, 3]))
        >>> torch.allclose(B @ A, layer.delta_weight())
        True
    """
    kept = layer.active()
    scaled_c = layer.scaling * layer.lora_c[kept]
    lora_A = layer.lora_A[kept].clone()
    lora_B = layer.lora_B[:, kept] * scaled_c
    return lora_A, lora_B


@torch.no_grad()
def merge(model: nn.Module, over_budget: bool = False) -> nn.Module:
    """Add every adapter's update to its base weight and remove the adapter, in place.

    Args:
        model: a model with adapters of `inject`.
        over_budget: whether to merge although the ranks are not final.

    Returns:
        the same model, or the base map of a model that is itself an adapter. Its outputs are what
        they were, but for rounding.

    Raises:
        ValueError: an allocator has these layers, and has not frozen their ranks; or a base weight
            is quantized or computed (as by weight_norm), so that an update cannot be added to it,
            or shared with another module, which the update would change too. The model is then
            left as it was.

    Examples:
        >>> from torch import nn
        >>> from dynarank import inject, merge
        >>> model = nn.ModuleDict({"query": nn.Linear(8, 8)})
        >>> layers = inject(model, targets=["query"], r=3)
        >>> merge(model)["query"]
        Linear(in_features=8, out_features=8, bias=True)
    """
    layers = adapter_layers(model)
    if not over_budget:
        check_at_budget(layers.values())
    _check_mergeable(model, layers)  # all before the first, so that a refusal changes nothing
    for layer in layers.values():
        weight = layer.weight
        delta = layer.delta_weight()  # (d_out, d_in)
        if stores_transposed(layer.base):
            delta = delta.T
        # The sum is rounded once to a narrow base, and a float64 base keeps its digits.
        wide = torch.promote_types(weight.dtype, delta.dtype)
        weight.copy_((weight.to(wide) + delta.to(wide)).to(weight.dtype))
    if isinstance(model, DoRALinear):
        # Nothing holds it, in whose place the base map could be put.
        model.lora_c.zero_()
        return model.base
    # A module may stand in several places, and the adapter must leave all of them.
    for parent in list(model.modules()):
        for child, module in list(parent._modules.items()):
            if isinstance(module, DoRALinear):
                setattr(parent, child, module.base)
    return model


def _check_mergeable(model: nn.Module, layers: Mapping[str, DoRALinear]) -> None:
    """Raise `ValueError` where a layer's weight cannot take its update, or not that alone."""
    holders = weight_holders(model)
    for name, layer in layers.items():
        weight: Any = getattr(layer.base, "weight", None)
        remedy = "load the base model unquantized to merge"
        # What is computed at each call, as by weight_norm, would not keep what is added to it.
        if isinstance(weight, Tensor) and not _holds(layer.base, weight):
            raise ValueError(
                f"{name} computes its weight from other tensors, as weight_norm does, so that an "
                "update cannot be added to it. Make it a plain weight first: "
                f"parametrize.remove_parametrizations(model.get_submodule({name!r}).base, "
                "'weight'), of torch.nn.utils, or remove_weight_norm"
            )
        # By the exact type: quantized weights are of subclasses, and keep their numbers packed.
        if type(weight) not in (nn.Parameter, Tensor):
            raise ValueError(f"{name} has no plain weight: {remedy}")
        # One byte holds no number of its own: a scale stands beside it.
        if not weight.is_floating_point() or weight.itemsize < 2:
            raise ValueError(f"{name} has a {weight.dtype} weight: {remedy}")
        own = f"{name}.base" if name else "base"  # a model that is itself an adapter has no name
        others = [other for other in holders.get(id(layer.weight), []) if other != own]
        if others:
            raise ValueError(
                f"{name} shares its weight with {others[0]}, which merging would change too. Give "
                f"it a copy first: base = model.get_submodule({name!r}).base; base.weight = "
                "nn.Parameter(base.weight.detach().clone()). For a tied transformers model, set "
                "config.tie_word_embeddings = False, too"
            )


def _holds(module: nn.Module, tensor: Tensor) -> bool:
    """Return whether a tensor is one of a module's own parameters or buffers."""
    held = (*module._parameters.values(), *module._buffers.values())
    return any(tensor is other for other in held)
