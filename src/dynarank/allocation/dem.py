"""Dimensional Equilibrium Modulator (Eq. 10): a penalty on the spread of a component's elements.

Legend: n components of all layers, a_i (d_in) and b_i (d_out) the vectors of component i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynarank.allocation.components import Layers, as_list
from dynarank.allocation.grouping import group_indices


def dem_penalty(layers: Layers) -> Tensor:
    """Return R = (1/n) sum_i (Var(a_i) + Var(b_i)) over all layers (Eq. 10), a float32 scalar.

    The variances are unbiased, over a vector's elements; a vector of one element has variance 0.
    R is computed outside autocast. It is differentiable with respect to A and B. The authors' code
    divides by 2n: its eta = 0.1 is eta = 0.05 here.

    Raises:
        ValueError: there are no layers.
    """
    members = as_list(layers)
    factors: list[Tensor] = []  # each (r', d), a component's vector a row
    for layer in members:
        factors += [layer.lora_A, layer.lora_B.mT]
    device = members[0].lora_A.device
    sums = []
    with torch.autocast(device.type, enabled=False):
        for indices in group_indices((factor.shape, factor.device) for factor in factors):
            stacked = torch.stack([factors[index] for index in indices])
            sums.append(_variances(stacked).sum().to(device))
        total = torch.stack(sums).sum()
    return total / sum(layer.r for layer in members)


def _variances(vectors: Tensor) -> Tensor:
    """Return the unbiased variance of each vector: (..., d) -> (...)."""
    if vectors.shape[-1] == 1:
        return torch.zeros_like(vectors[..., 0])
    return vectors.var(dim=-1)
