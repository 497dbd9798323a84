"""The best components of a model, by number or by parameters, taken one after the other.

Legend: n components of the model, in layer order.
"""

from __future__ import annotations

import itertools

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


def exchanged(keep: Tensor, scores: Tensor, costs: Tensor, parameters: int) -> Tensor:
    """Return a choice that no exchange of one component for another makes better, (n) bool.

    `top_parameters` leaves room where nothing but wide components is left to take. Then a kept one
    makes way for a wider one of a higher score, if that fits; the best exchange comes first.

    Args:
        keep: the choice to start from, (n) bool.
        scores: (n), whose kept sum rises; infinite and negative ones as in `top_parameters`.
        costs: the parameters of each component, (n).
        parameters: how many may be spent.
    """
    # On the host, where a choice of several steps does not wait for the device at each.
    values, prices, kept = scores.cpu(), costs.cpu().double(), keep.cpu().clone()
    classes = [prices == price for price in prices.unique()]
    # It ends, since each exchange makes the kept sum larger.
    while True:
        room = parameters - int(prices[kept].sum())
        pair, best_gain = None, 0.0
        # Of components of one cost no others can make a better exchange than these.
        for given_up, taken in itertools.product(
            _lowest_of_each(classes, values, kept),
            _lowest_of_each(classes, -values, ~kept & (values >= 0)),
        ):
            gain = float(values[taken] - values[given_up])
            # Where both are infinite the gain is NaN, which is above nothing.
            if gain > best_gain and prices[taken] - prices[given_up] <= room:
                pair, best_gain = (given_up, taken), gain
        if pair is None:
            return kept.to(keep.device)
        kept[pair[0]], kept[pair[1]] = False, True


def _lowest_of_each(classes: list[Tensor], values: Tensor, among: Tensor) -> list[int]:
    """Return the index of the lowest value of each class, (n) bool each, that has any `among`."""
    lowest = []
    for of_class in classes:
        indices = (of_class & among).nonzero().flatten()
        if len(indices):
            lowest.append(int(indices[values[indices].argmin()]))
    return lowest
