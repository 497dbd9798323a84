"""Whether the ranks that a method finds repeat: Spearman's correlation of ranks by matrix.

A pair of runs differs in one thing alone: the seed, the task, the budget or the method. The mean
over all pairs has an interval by a bootstrap over matrices (all runs share them, so runs are not
drawn), and is held against chance: the same ranks, each run's put on matrices drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
from scipy import stats

from dynarank.report.bench_pairs import compared
from dynarank.report.bench_sections import Grid, Section, listed, small
from dynarank.report.significance import LEVEL
from dynarank.sweeps.bench import ARMS, Cell

DRAWS = 999
PARTS = 20
"""All draws at once would not fit into a processor's cache, and take twice as long."""
DRAWN = ("random", "random_alpha_8", "random_orthogonal", "lora_random")
"""Arms whose ranks the seed draws, alike on all tasks."""
KINDS = ("seeds", "tasks", "budgets", "methods")


@dataclass(frozen=True)
class Repeat:
    """How alike ranks are over pairs of runs that differ in one thing."""

    over: str
    """One of `KINDS`."""
    arms: tuple[str, ...]
    """The method, or the two that are compared."""
    budget: float | None
    """None where it is the budget that differs."""
    pairs: int
    mean: float
    """The mean of Spearman's correlation over the pairs."""
    low: float
    high: float
    chance: float
    """What the mean exceeds by chance one time in forty."""
    p: float
    """How often chance comes as high or higher; one-sided."""


def ranks_of(cell: Cell) -> tuple[int, ...]:
    """Return a cell's ranks by matrix."""
    return tuple(int(word) for word in cell.ranks.split())


def repeats(cells: Sequence[Cell]) -> list[Repeat]:
    """Return the correlations of methods that find ranks, kind by kind.

    A run whose matrices all have one rank has no order, and is left out; so are arms whose ranks
    are the same in all runs of a budget, or come from a seed or another arm: theirs were given.
    """
    usable = []
    for cell in compared(cells):
        arm = ARMS.get(cell.arm)
        taken = cell.arm in DRAWN or (arm is not None and arm.ranks_of is not None)
        if len(set(ranks_of(cell))) > 1 and not taken:
            usable.append(cell)
    given = _given(usable)
    found = [cell for cell in usable if (cell.arm, cell.budget) not in given]
    differs: dict[str, Callable[[Cell], tuple[object, ...]]] = {
        "seeds": lambda cell: (cell.arm, cell.budget, cell.task),
        "tasks": lambda cell: (cell.arm, cell.budget, cell.seed),
        "budgets": lambda cell: (cell.arm, cell.task, cell.seed),
        "methods": lambda cell: (cell.budget, cell.task, cell.seed),
    }
    result = []
    for kind in KINDS:
        result += _repeats_over(kind, found, differs[kind])
    return result


def _given(cells: Sequence[Cell]) -> set[tuple[str, float]]:
    patterns: dict[tuple[str, float], list[tuple[int, ...]]] = {}
    for cell in cells:
        patterns.setdefault((cell.arm, cell.budget), []).append(ranks_of(cell))
    given = set()
    for key, of_arm in patterns.items():
        if len(of_arm) > 1 and len(set(of_arm)) == 1:
            given.add(key)
    return given


def _repeats_over(
    kind: str, cells: Sequence[Cell], shared: Callable[[Cell], tuple[object, ...]]
) -> list[Repeat]:
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, cell in enumerate(cells):
        groups.setdefault(shared(cell), []).append(index)
    pairs: dict[tuple[tuple[str, ...], float | None], list[tuple[int, int]]] = {}
    for members in groups.values():
        for one, other in combinations(members, 2):
            if len(ranks_of(cells[one])) != len(ranks_of(cells[other])):
                continue
            arms = tuple(sorted({cells[one].arm, cells[other].arm}))
            budget = None if kind == "budgets" else cells[one].budget
            pairs.setdefault((arms, budget), []).append((one, other))
    result = []
    for (arms, budget), of_arms in sorted(pairs.items(), key=lambda item: _order(item[0])):
        result.append(_repeat(kind, arms, budget, cells, of_arms))
    return result


def _order(key: tuple[tuple[str, ...], float | None]) -> tuple[float, tuple[str, ...]]:
    arms, budget = key
    return (0.0 if budget is None else budget, arms)


def _repeat(
    kind: str,
    arms: tuple[str, ...],
    budget: float | None,
    cells: Sequence[Cell],
    pairs: Sequence[tuple[int, int]],
) -> Repeat:
    in_pairs = sorted(set(chain.from_iterable(pairs)))
    row_of = {index: row for row, index in enumerate(in_pairs)}
    ranks = np.array([ranks_of(cells[index]) for index in in_pairs])  # (runs, matrices)
    # The pairs as rows of `ranks`.
    first = np.array([row_of[one] for one, _ in pairs])
    second = np.array([row_of[other] for _, other in pairs])
    mean = mean_correlation(ranks, first, second)
    # A seed of its own, so that the same cells give the same page.
    rng = np.random.default_rng(0)
    matrices = ranks.shape[1]
    times = np.empty((DRAWS, matrices))
    shuffled = np.empty(DRAWS)
    scaled = standardized(ranks)
    for draw in range(DRAWS):
        # Matrices drawn with replacement, for the interval: how often each comes.
        places = rng.integers(matrices, size=matrices)
        times[draw] = np.bincount(places, minlength=matrices)
        # Shuffled after scaling, which no order changes: ranks need not be sorted anew each time.
        drawn = rng.permuted(scaled, axis=1)
        # No row is NaN: runs whose matrices all have one rank were left out.
        shuffled[draw] = np.vdot(drawn[first], drawn[second]) / len(pairs)
    below = places_below(ranks)
    resampled = []
    for part in np.array_split(times, PARTS):
        resampled += list(resampled_correlations(below, part, first, second))
    low, high = np.nanquantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # Equal sums in another order may differ by a rounding.
    at_least = sum(value >= mean - 1e-12 for value in shuffled)
    return Repeat(
        over=kind,
        arms=arms,
        budget=budget,
        pairs=len(pairs),
        mean=mean,
        low=float(low),
        high=float(high),
        chance=float(np.quantile(shuffled, (1 + LEVEL) / 2)),
        # What was observed counts as one draw, so that p is never 0.
        p=(1 + at_least) / (1 + DRAWS),
    )


def standardized(ranks: np.ndarray) -> np.ndarray:
    """Return ordered ranks (runs, matrices) of mean 0 and length 1; NaN for a row of ties."""
    ordered = stats.rankdata(ranks, axis=1)
    centred = ordered - ordered.mean(axis=1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    return centred / np.where(length > 0, length, math.nan)


def mean_correlation(ranks: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean of Spearman's correlation over pairs of rows of ranks (runs, matrices).

    A pair one of whose rows is all ties is left out; NaN where there is no other.
    """
    scaled = standardized(ranks)
    correlations = (scaled[first] * scaled[second]).sum(axis=1)
    return _mean_of_known(correlations)


def _mean_of_known(correlations: np.ndarray) -> float:
    known = correlations[~np.isnan(correlations)]
    return float(known.mean()) if len(known) else math.nan


def places_below(ranks: np.ndarray) -> np.ndarray:
    """Return what each matrix adds to another's place in the order, (runs, matrices, matrices).

    It is 1 where the second matrix has a lower rank than the first, and a half where they are tied.
    """
    lower = ranks[:, None, :] < ranks[:, :, None]
    tied = ranks[:, None, :] == ranks[:, :, None]
    return lower + tied / 2


def resampled_correlations(
    below: np.ndarray, times: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Return `mean_correlation` for each draw of matrices, as (draws,).

    Counting needs no new order for each draw, and all draws are counted together.

    Args:
        below: what `places_below` returns.
        times: how often each draw has each matrix, as (draws, matrices).
        first: the first row of each pair.
        second: the second.
    """
    count = times.T[None]  # (1, matrices, draws)
    ordered = below @ count  # (runs, matrices, draws); a constant below ranks that were ordered
    centred = ordered - (ordered * count).sum(axis=1, keepdims=True) / count.sum(axis=1)
    length = np.sqrt((centred**2 * count).sum(axis=1, keepdims=True))
    # A matrix that was drawn twice counts twice in each product of two runs.
    scaled = centred * np.sqrt(count) / np.where(length > 0, length, math.nan)
    correlations = np.empty((len(first), len(times)))
    for pair, (one, other) in enumerate(zip(first, second, strict=True)):
        correlations[pair] = (scaled[one] * scaled[other]).sum(axis=0)
    known = ~np.isnan(correlations)
    sums = np.where(known, correlations, 0.0).sum(axis=0)
    return sums / np.where(known.any(axis=0), known.sum(axis=0), math.nan)


def ranks_section(cells: Sequence[Cell]) -> Section:
    """Answer whether the ranks found repeat."""
    title = "5. Do the ranks found repeat?"
    found = repeats(cells)
    if not found:
        text = "The data carry no answer: no method found ranks in two runs that can be compared."
        return Section(title, text)
    sentences = [_sentence(kind, found) for kind in KINDS]
    rows = []
    for one in found:
        rows.append(
            [
                one.over,
                "all" if one.budget is None else f"{one.budget:g}",
                " and ".join(one.arms),
                str(one.pairs),
                f"{one.mean:+.2f}",
                f"{one.low:+.2f} to {one.high:+.2f}",
                f"{one.chance:+.2f}",
                small(one.p),
            ]
        )
    headings = (
        "over",
        "budget",
        "method",
        "pairs of runs",
        "mean correlation",
        "95 % interval",
        "chance, 97.5 %",
        "p",
    )
    return Section(title, " ".join(s for s in sentences if s), [Grid(headings, rows)])


def _sentence(kind: str, found: Sequence[Repeat]) -> str:
    of_kind = [one for one in found if one.over == kind]
    if not of_kind:
        return ""
    above = []
    for one in of_kind:
        if one.mean > one.chance:
            place = "" if one.budget is None else f" at {one.budget:g}"
            above.append(f"`{' and '.join(one.arms)}`{place} ({one.mean:+.2f})")
    if not above:
        return f"Over {kind}, no ranks agree more than chance."
    return (
        f"Over {kind}, ranks agree more than chance for {len(above)} of {len(of_kind)}: "
        f"{listed(above)}."
    )
