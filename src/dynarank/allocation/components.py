"""What the allocation reads of an adapted layer, and what it writes.

`DoRALinear` is such a layer. Any other object with these members can be allocated, too: for example
a gate on another library's LoRA layer. Importance, sensitivity, DEM and `RankAllocator` ask for
nothing else. Legend: r components of the layer, A (r, d_in), B (d_out, r), c (r).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from dynarank.adapters.progress import AllocationProgress


class Components(Protocol):
    """The rank-one components c_i B[:, i] A[i, :] of one adapted layer.

    A, B and c are the leaf parameters that the optimizer updates, so that their `grad` can be read
    and written. The allocation changes c (pruning) and `mask` (freezing) in place, and sets
    `progress`. It changes nothing else.
    """

    progress: AllocationProgress | None
    """Set by the allocator that has this layer; None before."""

    @property
    def r(self) -> int:
        """The number of components."""

    @property
    def in_features(self) -> int:
        """The size d_in."""

    @property
    def out_features(self) -> int:
        """The size d_out."""

    @property
    def scaling(self) -> float:
        """The factor s of the layer's update."""

    @property
    def lora_A(self) -> Tensor:
        """A, (r, d_in)."""

    @property
    def lora_B(self) -> Tensor:
        """B, (d_out, r)."""

    @property
    def lora_c(self) -> Tensor:
        """The coefficients c, (r)."""

    @property
    def mask(self) -> Tensor:
        """Which components have not been frozen out, (r) bool. It is changed in place."""


Layers = Mapping[str, Components] | Sequence[Components]
"""Adapted layers in model order: the dict that `inject` returns, or a list of layers."""


def as_list(layers: Layers) -> list[Components]:
    """Return the layers of a mapping or a sequence, in order.

    Raises:
        ValueError: there are none.
    """
    values = list(layers.values()) if isinstance(layers, Mapping) else list(layers)
    if not values:
        raise ValueError("no adapted layers: inject adapters first")
    return values


def can_return(layers: Sequence[Components]) -> bool:
    """Return whether a component at c = 0 has a gradient by which it may return."""
    if any(layer.lora_c.requires_grad for layer in layers):
        return True
    # Nothing of a layer of rank 0 is trained, whatever is of the others.
    if any(layer.lora_A.requires_grad for layer in layers):
        return False
    # None is trained yet, as of an adapter that is not active. A buffer never is.
    return any(isinstance(layer.lora_c, nn.Parameter) for layer in layers)


def coefficients(layer: Components) -> Tensor:
    """Return c with the components that the mask excludes at exactly zero, (r)."""
    return layer.lora_c.masked_fill(~layer.mask, 0)  # 0 * inf is NaN


def component_parameters(layer: Components) -> int:
    """Return what one component of a layer takes once folded: a row of A and a column of B."""
    return layer.in_features + layer.out_features


def component_costs(layers: Sequence[Components], device: torch.device) -> Tensor:
    """Return what each component of some layers costs in parameters, (n) in layer order."""
    costs: list[float] = []
    for layer in layers:
        cost = float(component_parameters(layer))
        costs += [cost] * layer.r
    return torch.tensor(costs, device=device)
