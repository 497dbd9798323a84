"""Choose which components are kept: the best of the whole model, by number or by parameters.

Legend: n components of the model, in layer order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynarank.adapters.greedy import exchanged, top_components, top_parameters


def as_chosen(keep: Tensor) -> Tensor:
    """Return a choice as it is, where one process trains the model alone.

    It has a name, because an allocator that holds a lambda could not be pickled.
    """
    return keep


def best_components(
    scores: Tensor,
    sizes: Sequence[int],
    count: int,
    floor: int = 0,
    costs: Tensor | None = None,
    later: int | None = None,
    later_ceiling: int | None = None,
) -> Tensor:
    """Return what the model keeps, (n) bool.

    Args:
        scores: (n); negative for components that may not be kept.
        sizes: components of each layer.
        count: how many may be kept or, where costs are given, how many parameters of them.
        floor: components that every layer keeps at least.
        costs: the parameters of each component, (n); None to count components.
        later: the last budget, where pruning is for good; None where pruned ones may return.
        later_ceiling: components that a layer may keep under the last budget; None for no limit.
    """
    scores = with_floors(scores, sizes, floor)
    if later is not None:
        # A caller that drives the pruning may ask for less than the last budget.
        allowed = with_ceiling(scores, sizes, later_ceiling)
        lasting = _best(allowed, costs, min(count, later))
        # What fills the last budget must not go before: wide components with higher scores would
        # be left, of which none fits, or more of one layer than it may keep.
        scores = torch.where(lasting, torch.full_like(scores, torch.inf), scores)
    return _best(scores, costs, count)


def _best(scores: Tensor, costs: Tensor | None, count: int) -> Tensor:
    """Return the best components, by number or, where costs are given, by parameters, (n) bool."""
    if costs is None:
        # Fewer than the count may be left that can be kept at all.
        return top_components(scores, count) & (scores >= 0)
    return exchanged(top_parameters(scores, costs, count), scores, costs, count)


def with_ceiling(scores: Tensor, sizes: Sequence[int], ceiling: int | None) -> Tensor:
    """Return the scores with -1 for all but the `ceiling` best components of every layer, (n).

    Those may then not be taken. The best choice under the ceiling is the best of what is left,
    because a layer's lower components can never replace its higher ones. None is no ceiling.
    """
    if ceiling is None:
        return scores
    best = torch.cat([top_components(part, ceiling) for part in scores.split(list(sizes))])
    return torch.where(best, scores, torch.full_like(scores, -1.0))


def with_floors(scores: Tensor, sizes: Sequence[int], floor: int) -> Tensor:
    """Return the scores with infinity for the `floor` best components of every layer, (n).

    Those then come first in any choice. Components with negative scores, which may not be taken,
    stay as they are.
    """
    if floor == 0:
        return scores
    best = torch.cat([top_components(part, floor) for part in scores.split(list(sizes))])
    # Without the second condition a floor would bring back what was masked for good.
    return torch.where(best & (scores >= 0), torch.full_like(scores, torch.inf), scores)
