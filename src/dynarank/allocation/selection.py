"""Which components are kept: the best of the whole model, by number or by the parameters that they take.

Legend: n components of the model, in layer order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def top_components(scores: Tensor, count: int) -> Tensor:
    """The `count` highest of (n) scores as an (n) bool mask; ties to the lower index. `count` is clipped to [0, n]."""
    order = torch.argsort(scores, descending=True, stable=True)
    keep = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    keep[order[: max(count, 0)]] = True
    return keep


def top_parameters(scores: Tensor, costs: Tensor, parameters: int) -> Tensor:
    """The components with the highest score for each parameter that fit together, as an (n) bool mask.

    They are taken in that order, one that does not fit left out, until none fits: what is left over is less than any
    component left out takes. Ties go to the lower index.

    Args:
        scores: (n); infinite for those that come first in any case, negative for those that may not be taken.
        costs: parameters of each, (n).
    """
    order = torch.argsort(scores / costs, descending=True, stable=True).tolist()
    worth, prices = scores.tolist(), costs.tolist()
    kept = []
    for index in order:
        if worth[index] >= 0 and prices[index] <= parameters:
            kept.append(index)
            parameters -= int(prices[index])
    keep = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    keep[kept] = True
    return keep


def with_floors(scores: Tensor, sizes: Sequence[int], floor: int) -> Tensor:
    """The scores, infinite for the `floor` best components of every layer, so that they come first, (n).

    Components with negative scores, which may not be taken, stay as they are.
    """
    if floor == 0:
        return scores
    best = torch.cat([top_components(part, floor) for part in scores.split(list(sizes))])
    return torch.where(best & (scores >= 0), torch.full_like(scores, torch.inf), scores)
