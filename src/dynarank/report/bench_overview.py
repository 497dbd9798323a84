"""The bench in one table a budget: each arm's mean score by task, and how far it is from LoRA's."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from dynarank.report.bench_pairs import Difference, compared, differences
from dynarank.report.bench_sections import Grid, interval, signed, small
from dynarank.sweeps.bench import BASELINE, Cell


def overviews(cells: Sequence[Cell]) -> list[Grid]:
    """Return a table for each budget that the baseline was run under, the best arm first.

    Arms that were not run on all of the baseline's tasks are left out. An arm's mean is over its
    tasks, each counted once.
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
    means = {}
    for arm, of_arm in scores.items():
        if set(tasks) <= set(of_arm):
            means[arm] = [fmean(of_arm[task]) for task in tasks]
    rows = []
    for arm in sorted(means, key=lambda arm: -fmean(means[arm])):
        one = found.get((budget, arm))
        compared_with = ["", "", "", ""]
        if one is not None:
            compared_with = [
                signed(one.scores.difference),
                interval(one.scores.low, one.scores.high),
                str(one.scores.n),
                small(one.adjusted),
            ]
        shown = [f"{mean:.3f}" for mean in [*means[arm], fmean(means[arm])]]
        rows.append([arm, *shown, *compared_with])
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
