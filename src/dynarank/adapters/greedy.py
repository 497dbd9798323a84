"""The best components of a model, by number or by parameters, taken one after the other.

Legend: n components of the model, in layer order.
"""

from __future__ import annotations

import torch
from torch import Tensor


def top_components(scores: Tensor, count: int) -> Tensor:
    """Return the `count` highest of (n) scores as an (n) bool mask.

    Ties go to the lower index. `count` is clipped to [0, n].
    """
    # No topk, which takes any of equal scores: processes and machines would differ.
    order = torch.argsort(scores, descending=True, stable=True)
    keep = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    # A slice to a negative count would keep nearly all.
    keep[order[: max(count, 0)]] = True
    return keep


def top_parameters(scores: Tensor, costs: Tensor, parameters: int) -> Tensor:
    """Return the best components for each parameter that fit together, as an (n) bool mask.

    Components are taken in the order of score / cost. One that does not fit is left out, and the
    next is tried. So what is left over is less than any component left out takes. Ties go to the
    lower index.

    Args:
        scores: (n); infinite for those that come first in any case, negative for those that may
            not be taken.
        costs: the parameters of each component, (n).
        parameters: how many may be spent.
    """
    order = torch.argsort(scores / costs, descending=True, stable=True).tolist()
    score_list = scores.tolist()
    cost_list = costs.tolist()
    kept = []
    # One by one, for each that is taken decides what still fits.
    for index in order:
        if score_list[index] >= 0 and cost_list[index] <= parameters:
            kept.append(index)
            parameters -= int(cost_list[index])  # whole, though kept as a float
    keep = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    keep[kept] = True
    return keep
