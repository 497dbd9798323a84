"""Dimensional Equilibrium Modulator, DEM (Eq. 10): a penalty on the spread of a vector's elements.

`dem_penalty` is the formula, for a loss. `add_dem_gradient` adds its gradient once a step, which is
cheaper; training calls that.

Legend: n components of all layers, a_i (d_in) and b_i (d_out) the vectors of component i (a row of
A, a column of B), v one of these vectors, d its length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynarank.allocation.components import Components, Layers, as_list
from dynarank.allocation.gradients import gradients_of
from dynarank.allocation.grouping import chunks, group_indices


def dem_penalty(layers: Layers) -> Tensor:
    """Return R = (1/n) sum_i (Var(a_i) + Var(b_i)) over all layers (Eq. 10), a float32 scalar.

    The variances are unbiased, over a vector's elements; a vector of one element has variance 0.
    R is computed outside autocast. It is differentiable with respect to A and B. The authors' code
    divides by 2n: its eta = 0.1 is eta = 0.05 here.

    Args:
        layers: as `inject` returns them.

    Raises:
        ValueError: there are no layers.

    Examples:
        >>> from torch import nn
        >>> from dynarank import dem_penalty, inject
        >>> layers = inject(nn.ModuleDict({"query": nn.Linear(8, 8)}), targets=["query"], r=3)
        >>> loss = 0.1 * dem_penalty(layers)  # beside the task's loss
        >>> loss.backward()
        >>> layers["query"].lora_A.grad.shape
        torch.Size([3, 8])
    """
    members = as_list(layers)
    factors: list[Tensor] = []  # each (r', d), a component's vector a row
    for layer in members:
        factors += [layer.lora_A, layer.lora_B.mT]
    device = members[0].lora_A.device
    shapes = [(factor.shape, factor.device) for factor in factors]
    sums = []
    with torch.autocast(device.type, enabled=False):
        for indices in group_indices(shapes):
            stacked = torch.stack([factors[index] for index in indices])
            # Layers may lie on several devices.
            sums.append(_variances(stacked).sum().to(device))
        total = torch.stack(sums).sum()
    components = sum(layer.r for layer in members)  # n
    return total / components


def _variances(vectors: Tensor) -> Tensor:
    """Return the unbiased variance of each vector: (..., d) -> (...)."""
    if vectors.shape[-1] == 1:
        # torch's unbiased variance of one element is NaN.
        return torch.zeros_like(vectors[..., 0])
    return vectors.var(dim=-1)


@torch.no_grad()
def add_dem_gradient(layers: Layers, eta: float, grad_scale: Tensor | None = None) -> Tensor:
    """Add the gradient of eta R to A's and B's gradients; return R, a float32 scalar.

    Call it once before an optimizer step, in place of adding eta R to each loss: the gradient is
    the same, at a fraction of the cost, and does not depend on how many losses are accumulated. The
    gradient of Eq. 10 is 2 (v - mean(v)) / (n (d - 1)) for each vector v. What is clipped before
    the call is clipped without it.

    Args:
        layers: as `inject` returns them. A gradient that is None is made.
        eta: the weight of the penalty.
        grad_scale: the loss scaler's factor, where the gradients are still multiplied by it.

    Raises:
        ValueError: there are no layers.
    """
    members = as_list(layers)
    components = sum(layer.r for layer in members)  # n
    factors = _factors(members)
    device = members[0].lora_A.device
    norms: list[Tensor] = []
    divisors: list[float] = []
    keys = [(factor.shape, axis, factor.device) for factor, axis in factors]
    for group in group_indices(keys):
        example, axis = factors[group[0]]
        length = example.shape[axis]  # d
        # Such vectors have no variance, and d - 1 would be a divisor of zero.
        if length == 1:
            continue
        for indices in chunks(group, example.numel()):
            parameters = [factors[index][0] for index in indices]
            centred = torch.stack(parameters)  # v - mean(v); (L, ...)
            centred -= centred.mean(dim=axis + 1, keepdim=True)
            # Before the scaler's factor is in it: R is returned without that.
            norms.append(centred.norm().to(device))
            # R sums norm^2 / (n (d - 1)). One dot product squares and adds all of them at the end,
            # so that a root is kept here.
            divisors.append(math.sqrt(components * (length - 1)))
            if grad_scale is not None:
                centred *= grad_scale.to(centred.device)
            weight = 2 * eta / (components * (length - 1))
            # One kernel for many gradients on GPUs. torch's own optimizers use this private name.
            torch._foreach_add_(gradients_of(parameters), list(centred.unbind()), alpha=weight)
    if not norms:
        return torch.zeros((), device=device)
    roots = torch.stack(torch._foreach_div(norms, divisors))
    return torch.dot(roots, roots).float()


def _factors(members: list[Components]) -> list[tuple[Tensor, int]]:
    """Return every A and B with the axis along which a component's vector lies."""
    factors: list[tuple[Tensor, int]] = []
    for layer in members:
        factors += [(layer.lora_A, 1), (layer.lora_B, 0)]
    return factors
