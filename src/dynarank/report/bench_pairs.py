"""Differences between arms of a bench, paired by task and seed under each budget.

The pairs of one task are not independent of each other: what is easy for a method in one seed is
easy in the next. So beside the test over pairs stands one over the means of tasks, and beside the
interval one of a bootstrap that draws whole tasks.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean

import numpy as np

from dynarank.report.significance import (
    LEVEL,
    RESAMPLES,
    SAME_DIFFERENCE,
    Comparison,
    compare,
    holm,
    paired_t,
    signed_ranks,
)
from dynarank.sweeps.bench import BASELINE, Cell
from dynarank.sweeps.bench_tuning import best_rate, is_tuning, is_untuned

LEAST_PAIRS = 6
"""Fewer pairs are shown, and not judged."""
LEAST_TASKS = 3
"""Fewer tasks have no interval of their own."""
ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """An arm's scores less another's, under a budget or under several together."""

    arm: str
    against: str
    budgets: tuple[float, ...]
    tasks: tuple[str, ...]
    scores: Comparison
    won: int
    """Pairs in which the arm's score is the higher one."""
    losses: Comparison
    effect: float
    """The mean difference over the differences' standard deviation; NaN for one pair."""
    effect_low: float
    """The lower end of the 95 % interval of a bootstrap over pairs; NaN below `LEAST_PAIRS`."""
    effect_high: float
    adjusted: float
    """p of the paired t test on the scores, after Holm over the family it was asked with."""
    rank_effect: float
    """The rank-biserial correlation: above 0 where the arm is better by signed ranks."""
    rank_p: float
    """p of Wilcoxon's signed-rank test on the scores, corrected likewise. Unlike a mean, it is not
    decided by single runs that learned nothing."""
    task_low: float
    """The lower end of the 95 % interval of a bootstrap over tasks; NaN below `LEAST_TASKS`."""
    task_high: float
    task_p: float
    """p of the t test over the means of tasks; NaN for one task. It is not corrected."""

    @property
    def budget(self) -> float:
        """The budget, where it is one."""
        (budget,) = self.budgets
        return budget

    @property
    def judged(self) -> bool:
        """Whether there are pairs enough."""
        return self.scores.n >= LEAST_PAIRS

    @property
    def verdict(self) -> int:
        """Return 1 where the arm is better, -1 where it is worse, 0 where nothing is shown."""
        return self._verdict(self.adjusted, self.scores.difference)

    @property
    def rank_verdict(self) -> int:
        """Return the same by signed ranks in place of means."""
        return self._verdict(self.rank_p, self.rank_effect)

    def _verdict(self, p: float, direction: float) -> int:
        # Written so that NaN, too, shows nothing.
        if not self.judged or not p < ALPHA:
            return 0
        return 1 if direction > 0 else -1


def compared(cells: Sequence[Cell], untuned: bool = False) -> list[Cell]:
    """Return the cells that comparisons may use.

    They are not those of tuning, nor those that failed, nor those at a rate that was the best
    before the tuning went on.

    Args:
        cells: of the bench.
        untuned: whether arms of one rate throughout are among them. They are another arm's runs.
    """
    return list(_compared(tuple(cells), untuned))


# A report asks for those of the same cells dozens of times.
@lru_cache(maxsize=32)
def _compared(cells: tuple[Cell, ...], untuned: bool) -> tuple[Cell, ...]:
    # Not by arm, because an arm may take the rate of another.
    tuning: dict[tuple[str, float], list[Cell]] = {}
    for cell in cells:
        if is_tuning(cell):
            tuning.setdefault((cell.task, cell.budget), []).append(cell)
    rates: dict[tuple[str, str, float], float | None] = {}
    chosen = []
    for cell in cells:
        if is_tuning(cell) or math.isnan(cell.score) or (is_untuned(cell.arm) and not untuned):
            continue
        key = (cell.arm, cell.task, cell.budget)
        if key not in rates:
            rates[key] = best_rate(tuning.get((cell.task, cell.budget), []), *key)
        # None: this version lacks the arm, or its tuning is not over.
        if rates[key] in (None, cell.lr):
            chosen.append(cell)
    return tuple(chosen)


def differences(cells: Sequence[Cell], against: str = BASELINE) -> list[Difference]:
    """Return every arm's difference from one arm, by budget; Holm's family is all of them."""
    arms = dict.fromkeys(cell.arm for cell in compared(cells))
    return paired_differences(cells, [(arm, against) for arm in arms if arm != against])


def paired_differences(
    cells: Sequence[Cell], wanted: Iterable[tuple[str, str]]
) -> list[Difference]:
    """Return the differences of pairs of arms, by budget, with Holm's correction over all.

    Args:
        cells: of the bench.
        wanted: an arm, and the arm that it is compared with. Pairs without a cell are left out.
    """
    usable = compared(cells)
    found = []
    for budget in sorted({cell.budget for cell in usable}):
        of_budget = [cell for cell in usable if cell.budget == budget]
        found += _uncorrected(of_budget, wanted)
    return _corrected(found)


def pooled_differences(
    cells: Sequence[Cell], wanted: Iterable[tuple[str, str]], budgets: Container[float]
) -> list[Difference]:
    """Return the differences of pairs of arms over several budgets together.

    Pairs are of one task, budget and seed. Holm's correction runs over all pairs of arms.

    Args:
        cells: of the bench.
        wanted: an arm, and the arm that it is compared with. Pairs without a cell are left out.
        budgets: those that count.
    """
    usable = [cell for cell in compared(cells, untuned=True) if cell.budget in budgets]
    return _corrected(_uncorrected(usable, wanted))


def _uncorrected(usable: Sequence[Cell], wanted: Iterable[tuple[str, str]]) -> list[Difference]:
    by_arm: dict[str, dict[tuple[str, float, int], Cell]] = {}
    for cell in usable:
        by_arm.setdefault(cell.arm, {})[cell.task, cell.budget, cell.seed] = cell
    found = []
    for arm, against in sorted(set(wanted)):
        ours, theirs = by_arm.get(arm, {}), by_arm.get(against, {})
        pairs = [(cell, theirs[key]) for key, cell in ours.items() if key in theirs]
        if pairs:
            found.append(_difference(arm, against, tuple(pairs)))
    return found


def _corrected(found: Sequence[Difference]) -> list[Difference]:
    adjusted = holm([one.scores.p_t for one in found])
    by_ranks = holm([one.rank_p for one in found])
    corrected = []
    for one, p, rank_p in zip(found, adjusted, by_ranks, strict=True):
        corrected.append(replace(one, adjusted=p, rank_p=rank_p))
    return corrected


# A report asks for many of them in several places, and draws 30,000 times for each.
@lru_cache(maxsize=2048)
def _difference(arm: str, against: str, pairs: tuple[tuple[Cell, Cell], ...]) -> Difference:
    ours = [cell for cell, _ in pairs]
    theirs = [cell for _, cell in pairs]
    scores = [cell.score for cell in ours]
    their_scores = [cell.score for cell in theirs]
    changes = [own - other for own, other in zip(scores, their_scores, strict=True)]
    by_task: dict[str, list[float]] = {}
    for cell, change in zip(ours, changes, strict=True):
        by_task.setdefault(cell.task, []).append(change)
    task_means = np.array([fmean(values) for values in by_task.values()])
    low, high = cluster_interval(list(by_task.values()))
    effect_low, effect_high = effect_interval(changes)
    rank_effect, rank_p = signed_ranks(np.asarray(changes))
    return Difference(
        arm=arm,
        against=against,
        budgets=tuple(sorted({cell.budget for cell in ours})),
        tasks=tuple(by_task),
        scores=compare(scores, their_scores),
        won=sum(own > other for own, other in zip(scores, their_scores, strict=True)),
        losses=compare([cell.loss for cell in ours], [cell.loss for cell in theirs]),
        effect=effect_size(changes),
        effect_low=effect_low,
        effect_high=effect_high,
        adjusted=math.nan,
        rank_effect=rank_effect,
        rank_p=rank_p,
        task_low=low,
        task_high=high,
        task_p=float(paired_t(task_means)) if len(task_means) > 1 else math.nan,
    )


def effect_size(values: Sequence[float]) -> float:
    """Return the mean over the sample standard deviation; NaN where there is none."""
    if len(values) < 2:
        return math.nan
    mean = fmean(values)
    squares = sum((value - mean) ** 2 for value in values)
    sd = math.sqrt(squares / (len(values) - 1))
    return mean / sd if sd > SAME_DIFFERENCE else math.nan


def effect_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the effect size, drawing pairs.

    It is NaN below `LEAST_PAIRS`, and where all pairs differ by the same.

    Args:
        values: the difference of each pair.
        seed: of the draws.
    """
    if len(values) < LEAST_PAIRS or max(values) - min(values) <= SAME_DIFFERENCE:
        return math.nan, math.nan
    places = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    drawn = np.asarray(values)[places]  # (resamples, pairs)
    sds = drawn.std(axis=1, ddof=1)
    # A draw of one pair alone, over and over, has no effect size.
    varied = sds > SAME_DIFFERENCE
    effects = drawn.mean(axis=1)[varied] / sds[varied]
    low, high = np.quantile(effects, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def cluster_interval(clusters: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean, drawing whole clusters.

    With few clusters it is too narrow, as every bootstrap; below `LEAST_TASKS` it is NaN.

    Args:
        clusters: the values of each cluster, here the differences of each task.
        seed: of the draws.
    """
    if len(clusters) < LEAST_TASKS:
        return math.nan, math.nan
    count = len(clusters)
    sums = np.array([sum(values) for values in clusters])
    sizes = np.array([len(values) for values in clusters])
    draws = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    # The mean of the values and not of the clusters' means: a draw has clusters of several sizes.
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
