"""Scores that know nothing of a component: what an informed score has to beat.

A control prunes by the same schedule to the same budget. What differs is where the ranks go: drawn
at random, or as many as a run found but in the wrong places. Legend: n components of the model.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def random_scores(sizes: Sequence[int], costs: Sequence[int] | None, seed: int) -> Tensor:
    """Return scores in [0, 1) that the seed alone decides, (n), alike on every machine.

    Args:
        sizes: components of each layer.
        costs: parameters of a layer's component, where the budget counts parameters. A score is
            multiplied by it, so that cheap components are not preferred.
        seed: of the draw.
    """
    # Python's generator: torch promises no equal draws on other devices and in other versions.
    draw = random.Random(seed)
    scores = []
    for position, size in enumerate(sizes):
        cost = 1 if costs is None else costs[position]
        scores += [draw.random() * cost for _ in range(size)]
    return torch.tensor(scores, dtype=torch.float32)


def shuffle_ranks(
    ranks: Mapping[str, int], shapes: Mapping[str, tuple[int, int]], seed: int
) -> dict[str, int]:
    """Return ranks permuted among the matrices of each shape, in the order of `ranks`.

    So neither the number of components nor that of parameters changes.

    Args:
        ranks: a rank by matrix.
        shapes: (d_in, d_out) by matrix.
        seed: of the permutation.
    """
    draw = random.Random(seed)
    groups: dict[tuple[int, int], list[str]] = {}
    for name in ranks:
        groups.setdefault(shapes[name], []).append(name)
    shuffled = dict(ranks)
    for names in groups.values():
        values = [ranks[name] for name in names]
        draw.shuffle(values)
        shuffled.update(zip(names, values, strict=True))
    return shuffled


def scores_for_ranks(
    ranks: Sequence[int], sizes: Sequence[int], costs: Sequence[int] | None, seed: int
) -> Tensor:
    """Return scores, (n), with which `ranks` components of each layer come before all others.

    Among those that stay, and among those that go, the order is drawn. Where parameters are counted
    and the ranks leave some unspent, another component may fit beside them.

    Args:
        ranks: of each layer.
        sizes: components of each layer.
        costs: as in `random_scores`.
        seed: of the draw.

    Raises:
        ValueError: a rank is above what its layer has.
    """
    draw = random.Random(seed)
    scores = []
    for position, (rank, size) in enumerate(zip(ranks, sizes, strict=True)):
        if rank > size:
            raise ValueError(
                f"a matrix of the pattern has rank {rank}, and the budget starts with {size} "
                f"components: give budget.init={max(ranks)} or more"
            )
        cost = 1 if costs is None else costs[position]
        for index in range(size):
            # A draw is below 1, so that 1 more puts a component before all that go.
            head_start = 1 if index < rank else 0
            scores.append(cost * (draw.random() + head_start))
    return torch.tensor(scores, dtype=torch.float32)
