"""Where a method without allocation puts the components that a budget pays for.

A component of a matrix costs d_in + d_out parameters. A budget of `target` components a layer is
`target` times what one component of every matrix takes, in parameters. So placements are compared
at the same parameters, though a component of a wide matrix costs more.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from dynarank.rounding import round_half_up

_QUERY_VALUE = re.compile(
    r"(.*\.)?((q|v|query|value)(_proj|_lin)?|c_attn|in_proj)"  # the last two hold q, k and v
)
# Kept out is BERT's `attention.output.dense`, which ends as the feed-forward's `output.dense`.
_FEED_FORWARD = re.compile(
    r".*(fc[12]|lin[12]|c_fc|mlp\.c_proj|wi|wi_[01]|wo|(gate|up|down)_proj|weights_(in|out)"
    r"|intermediate\.dense|(?<!attention\.)output\.dense)"
)
# Up to the first number, since T5's blocks number their parts, too.
_LAYER = re.compile(r"(.*?)\.(\d+)\..*")


def _all(names: Sequence[str]) -> list[str]:
    return list(names)


def _query_value(names: Sequence[str]) -> list[str]:
    return [name for name in names if _QUERY_VALUE.fullmatch(name)]


def _feed_forward(names: Sequence[str]) -> list[str]:
    return [name for name in names if _FEED_FORWARD.fullmatch(name)]


def _attention(names: Sequence[str]) -> list[str]:
    return [name for name in names if not _FEED_FORWARD.fullmatch(name)]


def _first_layers(names: Sequence[str]) -> list[str]:
    upper = set(_last_layers(names))
    return [name for name in names if name not in upper]


def _last_layers(names: Sequence[str]) -> list[str]:
    """Return the matrices of the upper half of each stack of layers; of 5 layers, the upper 3."""
    layers: dict[str, set[int]] = {}
    for name in names:
        if match := _LAYER.fullmatch(name):
            layers.setdefault(match[1], set()).add(int(match[2]))
    upper = {}
    for stack, numbers in layers.items():
        upper[stack] = sorted(numbers)[len(numbers) // 2 :]
    chosen = []
    for name in names:
        match = _LAYER.fullmatch(name)
        if match and int(match[2]) in upper[match[1]]:
            chosen.append(name)
    return chosen


_MATRICES: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "even": _all,
    "query_value": _query_value,
    "attention": _attention,
    "feed_forward": _feed_forward,
    "first_layers": _first_layers,
    "last_layers": _last_layers,
}
PLACEMENTS = (*_MATRICES, "random")
"""Which matrices get the components: all alike, those of one kind or half, or drawn."""


def place_ranks(
    costs: Mapping[str, int], target: float, placement: str, pool: int = 1, seed: int = 0
) -> dict[str, int]:
    """Return a rank for every matrix, in model order, that together take the budget's parameters.

    The components lie evenly over the chosen matrices, in model order: every fourth matrix has one
    under 0.25. Their number is the one whose parameters come nearest to the budget's. `random`
    draws from `pool` components of every matrix, and takes each that still fits; so it is never
    above the budget.

    Args:
        costs: parameters of one component, by matrix, in model order.
        target: mean number of components that the parameters stand for.
        placement: one of `PLACEMENTS`.
        pool: how many components of each matrix `random` may draw.
        seed: of `random`.

    Raises:
        ValueError: the placement fits no matrix, or the budget pays for no component.
    """
    parameters = round_half_up(target * sum(costs.values()))
    if placement == "random":
        # With fewer than the target of each matrix, the draw could not spend the budget.
        ranks = _draw(costs, parameters, max(pool, round_half_up(target)), seed)
    else:
        chosen = _MATRICES[placement](list(costs))
        if not chosen:
            raise ValueError(
                f"method.placement = {placement}: fits none of the matrices, as {next(iter(costs))}"
            )
        ranks = dict.fromkeys(costs, 0)
        ranks.update(_spread({name: costs[name] for name in chosen}, parameters))
    if not any(ranks.values()):
        raise ValueError(
            f"budget.target = {target:g}: pays for {parameters:,} parameters, and no component is "
            "that small. Give more, or train the head alone with method=head"
        )
    return ranks


def _spread(costs: Mapping[str, int], parameters: int) -> dict[str, int]:
    """Return evenly spread ranks whose parameters come nearest; of two as near, the fewer."""
    mean_cost = sum(costs.values()) / len(costs)
    guess = parameters / mean_cost
    names = list(costs)
    # Far around the guess: where kinds of matrices alternate, an even spread may meet the cheap
    # ones more often.
    fewest, most = int(guess / 2), 2 * math.ceil(guess)
    nearest: dict[str, int] = {}
    smallest_miss = math.inf
    for count in range(fewest, most + 1):
        ranks = _spread_count(names, count)
        miss = abs(_spent(ranks, costs) - parameters)
        if miss < smallest_miss:
            nearest, smallest_miss = ranks, miss
    return nearest


def _spent(ranks: Mapping[str, int], costs: Mapping[str, int]) -> int:
    """Return the parameters that ranks take."""
    return sum(rank * costs[name] for name, rank in ranks.items())


def _spread_count(names: Sequence[str], count: int) -> dict[str, int]:
    """Return the ranks of `count` components that lie as evenly as they can, in order."""
    per_matrix = count / len(names)
    # Ends are rounded, and not ranks, so that the ranks add up to `count`.
    ends = [round_half_up(index * per_matrix) for index in range(len(names) + 1)]
    return {name: end - start for name, (start, end) in zip(names, pairwise(ends), strict=True)}


def _draw(costs: Mapping[str, int], parameters: int, pool: int, seed: int) -> dict[str, int]:
    """Return ranks by drawing components, each as likely, without putting back."""
    components = list(costs) * pool
    random.Random(seed).shuffle(components)
    ranks = dict.fromkeys(costs, 0)
    for name in components:
        if costs[name] <= parameters:
            ranks[name] += 1
            parameters -= costs[name]
    return ranks
