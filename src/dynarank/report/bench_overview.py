"""The bench in one table a budget: each arm's mean score by task, and how far it is from LoRA's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from dynarank.report.bench_pairs import Difference, compared, differences
from dynarank.report.bench_sections import Grid, interval, numbered, plain, signed, small
from dynarank.sweeps.bench import BASELINE, Cell


def over_budgets(cells: Sequence[Cell], without: Sequence[str] = ()) -> Grid:
    """Return a row for each budget: the baseline's mean score, and how far the others are from it.

    The mean is over the tasks that the baseline was run on under every budget, each counted once.
    The others are those with pairs enough under two budgets or more, apart from `without`.
    """
    found = {(one.arm, one.budget): one for one in differences(cells) if one.judged}
    by_budget: dict[float, dict[str, list[float]]] = {}  # the baseline's scores by task
    for cell in compared(cells):
        if cell.arm == BASELINE:
            by_task = by_budget.setdefault(cell.budget, {})
            by_task.setdefault(cell.task, []).append(cell.score)
    if not by_budget:
        return Grid((), [])
    tasks_of_budgets = [set(by_task) for by_task in by_budget.values()]
    shared = set.intersection(*tasks_of_budgets)
    budgets_of = Counter(arm for arm, _ in found)
    arms = sorted(arm for arm, count in budgets_of.items() if count > 1 and arm not in without)
    rows = []
    for budget, by_task in sorted(by_budget.items()):
        mean = math.nan
        if shared:
            mean = fmean(fmean(by_task[task]) for task in shared)
        row = [f"{budget:g}", plain(mean)]
        for arm in arms:
            row.append(_change(found.get((arm, budget))))
        rows.append(row)
    base = f"evenly placed LoRA, mean of {numbered(len(shared), 'task')}"
    return Grid(("budget", base, *(f"{arm} less that" for arm in arms)), rows)


def _change(one: Difference | None) -> str:
    if one is None:
        return ""
    scores = one.scores
    return f"{signed(scores.difference, 3)} ({scores.low:+.3f} to {scores.high:+.3f})"


def overviews(cells: Sequence[Cell]) -> list[Grid]:
    """Return a table for each budget that the baseline was run under, the best arm first.

    The best is the one with the highest difference from the baseline. Arms with too few pairs are
    left out. An arm's mean is over all tasks, each counted once; it is open where one is missing.
    """
    found = {(one.budget, one.arm): one for one in differences(cells)}
    scores: dict[float, dict[str, dict[str, list[float]]]] = {}
    for cell in compared(cells):
        of_arm = scores.setdefault(cell.budget, {}).setdefault(cell.arm, {})
        of_arm.setdefault(cell.task, []).append(cell.score)
    return [
        _overview(budget, of_budget, found)
        for budget, of_budget in sorted(scores.items())
        if BASELINE in of_budget
    ]


def _overview(
    budget: float,
    scores: dict[str, dict[str, list[float]]],
    found: dict[tuple[float, str], Difference],
) -> Grid:
    tasks = sorted(scores[BASELINE])
    shown = {arm: found[budget, arm] for arm in scores if (budget, arm) in found}
    gains = {arm: one.scores.difference for arm, one in shown.items() if one.judged}
    gains[BASELINE] = 0.0
    rows = []
    for arm in sorted(gains, key=lambda arm: -gains[arm]):
        means = []
        cells = []
        for task in tasks:
            if task in scores[arm]:
                means.append(fmean(scores[arm][task]))
                cells.append(f"{means[-1]:.3f}")
            else:
                cells.append("")
        is_complete = len(means) == len(tasks)
        cells.append(f"{fmean(means):.3f}" if is_complete else "")
        compared_with = ["", "", "", ""]
        if arm in shown:
            one = shown[arm]
            compared_with = [
                signed(one.scores.difference),
                interval(one.scores.low, one.scores.high),
                str(one.scores.n),
                small(one.adjusted),
            ]
        rows.append([arm, *cells, *compared_with])
    headings = (
        f"budget {budget:g}",
        *tasks,
        "mean",
        "less LoRA's",
        "95 %",
        "pairs",
        "p, Holm",
    )
    return Grid(headings, rows)
