"""Out of training: fold a layer's components into plain LoRA factors, or merge them into the base weights. Torch only.

Legend: k components that a layer kept, A (k, d_in), B (d_out, k).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynarank.adapters.inject import adapter_layers
from dynarank.adapters.layer import DoRALinear

Factors = tuple[Tensor, Tensor]
"""A (k, d_in) and B (d_out, k)."""


@torch.no_grad()
def fold(layer: DoRALinear) -> tuple[Tensor, Tensor]:
    """A layer's nonzero components as LoRA factors with scale 1: A (k, d_in), and B (d_out, k) with s and c inside."""
    kept = layer.active()
    return layer.lora_A[kept].clone(), layer.lora_B[:, kept] * (layer.scaling * layer.lora_c[kept])


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Add every adapter's update to its base weight and take the adapter away, in place; returns the model.

    Raises:
        ValueError: a base weight is quantized, so that an update cannot be added to it; the model is left as it was.
    """
    layers = adapter_layers(model)
    for name, layer in layers.items():
        if not layer.weight.is_floating_point():
            raise ValueError(
                f"{name} has a {layer.weight.dtype} weight: load the base model unquantized to merge"
            )
    for name, layer in layers.items():
        weight, delta = layer.weight, layer.delta_weight()  # (d_out, d_in)
        if not isinstance(layer.base, nn.Linear):
            delta = delta.T  # Conv1D holds (d_in, d_out)
        wide = torch.promote_types(weight.dtype, delta.dtype)
        weight.copy_((weight.to(wide) + delta.to(wide)).to(weight.dtype))
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)
    return model
