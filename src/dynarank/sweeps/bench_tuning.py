"""Which rate an arm of the bench is compared at, and which cell is to be run next.

The grid of rates runs on one seed, and is carried on for as long as the best stands at its edge.
The best rate and the one below it then run on a second seed, and the lower mean loss decides. One
seed alone often chooses a rate at which other seeds collapse: the losses fall with the rate until
they jump. Where the two seeds then choose the lowest rate of all that were tried, half of it runs
on both, too, and so on. Where no rate of the grid learns anything, lower ones run until one does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from dynarank.sweeps.bench import (
    ARMS,
    BUDGETS,
    FIRST_ARMS,
    MOST_EXTENSIONS,
    SEEDS,
    TASKS,
    TUNING_SEEDS,
    Cell,
)


def is_tuning(cell: Cell) -> bool:
    """Return whether a cell chooses a rate, and is in no comparison."""
    return cell.seed in TUNING_SEEDS


def is_untuned(arm: str) -> bool:
    """Return whether an arm has one rate on every task and under every budget."""
    return arm in ARMS and ARMS[arm].only_rate is not None


def best_rate(cells: Sequence[Cell], arm: str, task: str, budget: float) -> float | None:
    """Return the tuned rate; None while the tuning is not over, or where nothing was tuned.

    An arm that has one rate throughout has that one.
    """
    if arm in ARMS:
        if ARMS[arm].only_rate is not None:
            return ARMS[arm].only_rate
        arm = ARMS[arm].rate_of or arm
    # A file may hold cells of arms that this version has no more.
    if arm not in ARMS or next_tuning(cells, arm, task, budget) is not None:
        return None
    return _best_of_both_seeds(_losses(cells, arm, task, budget), _lowest_wanted(arm))


def next_tuning(
    cells: Sequence[Cell], arm: str, task: str, budget: float
) -> tuple[int, float] | None:
    """Return the seed and the rate that tuning an arm wants next; None once it is over.

    An arm that takes another's rate, or has one rate throughout, wants none.
    """
    if ARMS[arm].rate_of is not None or is_untuned(arm):
        return None
    losses = _losses(cells, arm, task, budget)
    lowest_wanted = _lowest_wanted(arm)
    if _learned_nothing(cells, arm, task, budget):
        # Among losses of models that predict one thing the lowest says nothing of its rate.
        lower = min(rate for _, rate in losses) / 2
        if lower >= lowest_wanted:
            return TUNING_SEEDS[0], lower
    rate = _next_of_grid(losses, ARMS[arm].grid())
    if rate is not None:
        return TUNING_SEEDS[0], rate
    for rate in _finalists(losses, lowest_wanted):
        for seed in TUNING_SEEDS:
            if (seed, rate) not in losses:
                return seed, rate
    best = _best_of_both_seeds(losses, lowest_wanted)
    lowest = min(rate for _, rate in losses)
    if best == lowest and best > lowest_wanted:
        # The second seed first: what it has tried is a finalist, and the first seed follows.
        return TUNING_SEEDS[1], best / 2
    return None


def _lowest_wanted(arm: str) -> float:
    """Return the rate below which no tuning of an arm goes on."""
    return ARMS[arm].lowest_rate / 2**MOST_EXTENSIONS


def _best_of_both_seeds(
    losses: dict[tuple[int, float], float], lowest_wanted: float
) -> float | None:
    """Return the finalist with the lowest finite mean loss; None where there is none."""
    means = {}
    for rate in _finalists(losses, lowest_wanted):
        # Both callers have seen to it that every finalist ran on both seeds.
        means[rate] = fmean(losses[seed, rate] for seed in TUNING_SEEDS)
    finite = [rate for rate, mean in means.items() if mean < math.inf]
    # Of equal losses the lower rate, which is farther from a collapse.
    return min(finite, key=lambda rate: (means[rate], rate)) if finite else None


def _learned_nothing(cells: Sequence[Cell], arm: str, task: str, budget: float) -> bool:
    """Return whether the first seed's runs have one score in common, at the whole grid at least."""
    scores = []
    for cell in cells:
        of_arm = (cell.arm, cell.task, cell.budget) == (arm, task, budget)
        if of_arm and cell.seed == TUNING_SEEDS[0]:
            scores.append(cell.score)
    # NaN, of a run that failed, is not equal to itself.
    return len(scores) >= ARMS[arm].rates and len(set(scores)) == 1 and scores[0] == scores[-1]


def _losses(
    cells: Sequence[Cell], arm: str, task: str, budget: float
) -> dict[tuple[int, float], float]:
    """Return the losses of tuning by seed and rate; infinite where a run failed."""
    losses = {}
    for cell in cells:
        if is_tuning(cell) and (cell.arm, cell.task, cell.budget) == (arm, task, budget):
            losses[cell.seed, cell.lr] = math.inf if math.isnan(cell.loss) else cell.loss
    return losses


def _on_grid(losses: dict[tuple[int, float], float]) -> dict[float, float]:
    return {rate: loss for (seed, rate), loss in losses.items() if seed == TUNING_SEEDS[0]}


def _best_on_grid(losses: dict[tuple[int, float], float]) -> float | None:
    """Return the rate with the lowest finite loss on the first seed."""
    finite = {rate: loss for rate, loss in _on_grid(losses).items() if loss < math.inf}
    return min(finite, key=lambda rate: (finite[rate], rate)) if finite else None


def _next_of_grid(losses: dict[tuple[int, float], float], grid: list[float]) -> float | None:
    """Return the next rate of the grid; None once its best stands inside it."""
    tried = _on_grid(losses)
    for rate in grid:
        if rate not in tried:
            return rate
    best = _best_on_grid(losses)
    if best is None:
        return None
    if best == max(tried) and best < grid[-1] * 2**MOST_EXTENSIONS:
        return 2 * best
    if best == min(tried) and best > grid[0] / 2**MOST_EXTENSIONS:
        return best / 2
    return None


def _finalists(losses: dict[tuple[int, float], float], lowest_wanted: float) -> list[float]:
    """Return the best rate on the first seed, the one below it, and all that the second tried."""
    best = _best_on_grid(losses)
    if best is None:
        return []
    tried = [rate for seed, rate in losses if seed == TUNING_SEEDS[1]]
    below = [best / 2] if best > lowest_wanted else []
    return list(dict.fromkeys([best, *below, *tried]))


def source_of(cells: Sequence[Cell], cell: Cell) -> Cell | None:
    """Return the finished cell whose ranks a cell is given; None where it is not there yet.

    It is that of the arm `ranks_of`, on the same task, budget and seed, at that arm's tuned rate.
    """
    arm = ARMS[cell.arm].ranks_of
    assert arm is not None
    rate = best_rate(cells, arm, cell.task, cell.budget)
    wanted = (arm, cell.task, cell.budget, cell.seed, rate)
    # A cell that failed has no ranks.
    return next((one for one in cells if one.key == wanted and one.ranks), None)


def _can_run(cells: Sequence[Cell], cell: Cell) -> bool:
    return ARMS[cell.arm].ranks_of is None or source_of(cells, cell) is not None


def pending(
    cells: Sequence[Cell],
    tasks: Sequence[str] = TASKS,
    budgets: Sequence[float] = BUDGETS,
    arms: Sequence[str] = FIRST_ARMS,
    seeds: Sequence[int] = SEEDS,
) -> Iterator[Cell]:
    """Yield the cells that can be run now, in order: a task's tuning, then its comparisons.

    A rate of a grid's continuation is known once the former one is done, and an arm that is given
    ranks waits for those that find them; so ask again after each.
    A budget's tasks are all tuned before its first comparison, and a seed is compared on all tasks
    before the next, so that a bench that is stopped compares all tasks with as many seeds.
    """
    done = {cell.key for cell in cells}
    for budget in budgets:
        for task in tasks:
            for arm in arms:
                wanted = next_tuning(cells, arm, task, budget)
                if wanted is not None:
                    seed, rate = wanted
                    cell = Cell(arm=arm, task=task, budget=budget, seed=seed, lr=rate)
                    if _can_run(cells, cell):
                        yield cell
        for seed in seeds:
            for task in tasks:
                yield from _comparisons(cells, done, task, budget, arms, seed)


def _comparisons(
    cells: Sequence[Cell],
    done: set[tuple[str, str, float, int, float]],
    task: str,
    budget: float,
    arms: Sequence[str],
    seed: int,
) -> Iterator[Cell]:
    """Yield a seed's cells of a task that are missing, each arm at its tuned rate."""
    for arm in arms:
        rate = best_rate(cells, arm, task, budget)
        if rate is not None:
            cell = Cell(arm=arm, task=task, budget=budget, seed=seed, lr=rate)
            if cell.key not in done and _can_run(cells, cell):
                yield cell
