"""Dimensional Equilibrium Modulator (Eq. 10): a penalty on the spread of a component's elements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from dynarank.adapters.layer import DoRALinear


def dem_penalty(layers: Sequence[DoRALinear]) -> Tensor:
    """R = (1/n) sum_i (Var(a_i) + Var(b_i)) over all n components of the layers (Eq. 10); a float32 scalar.

    Unbiased variances over a vector's elements; a vector of one element has variance 0. Computed outside autocast. The
    authors' code divides by 2n: its eta = 0.1 is eta = 0.05 here. Differentiable with respect to A and B.

    Raises:
        ValueError: no layers.
    """
    if not layers:
        raise ValueError("no adapted layers: DEM is a mean over their components")
    by_shape: dict[tuple[torch.Size, torch.device], list[Tensor]] = defaultdict(list)
    for layer in layers:
        for vectors in (layer.lora_A, layer.lora_B.mT):  # (r', d): a component's vector a row
            by_shape[vectors.shape, vectors.device].append(vectors)
    device = layers[0].lora_A.device
    with torch.autocast(device.type, enabled=False):
        total = torch.stack(
            [_variances(torch.stack(group)).sum().to(device) for group in by_shape.values()]
        ).sum()
    return total / sum(layer.r for layer in layers)


def _variances(vectors: Tensor) -> Tensor:
    """Unbiased variance of each vector: (..., d) -> (...)."""
    return vectors.var(dim=-1) if vectors.shape[-1] > 1 else torch.zeros_like(vectors[..., 0])
