"""What the scores say, in words: which setting is best, by how much, and whether that is more than chance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dynarank.report.statistics import Comparison, compare, holm, paired_t
from dynarank.report.tables import ALPHA, Setting, Table


@dataclass(frozen=True)
class Standing:
    """How the settings stand on a task."""

    task: str
    order: list[Setting]
    """By mean score, the highest first; those without a score are missing."""
    lead: Comparison | None
    """The best less the second best, over the seeds that both have; None where there are no two, or no common seed."""
    p_holm: float
    """The lead's p, corrected over every pair of settings on every task, for the best was picked after looking."""
    beaten: list[Setting]
    """Those that the best is told apart from."""
    pairs: int
    """How many pairs the correction counts."""

    @property
    def tied(self) -> bool:
        """Whether the first two differ by less than is printed."""
        return (
            self.lead is not None
            and abs(self.lead.difference) < 5e-5
            and self.order[1] not in self.beaten
        )

    @property
    def verdict(self) -> str:
        """What may be said of the best: 'alone', 'one seed', 'not told apart', 'in part' or 'told apart'."""
        if len(self.order) < 2:
            return "alone"
        if self.lead is None or self.lead.n < 2:
            return "one seed"
        if not self.beaten:
            return "not told apart"
        return "told apart" if len(self.beaten) == len(self.order) - 1 else "in part"


def standings(table: Table) -> list[Standing]:
    """One a task, in the table's order."""
    orders = {task: standing_order(table, task) for task in table.tasks}
    pairs = [
        (task, *two) for task, order in orders.items() for two in itertools.combinations(order, 2)
    ]
    p_values = dict(
        zip(pairs, holm([_p_value(*_shared(table, *pair)) for pair in pairs]), strict=True)
    )
    found = []
    for task, order in orders.items():
        lead, p_holm = None, math.nan
        if len(order) > 1:
            first, second = _shared(table, task, order[0], order[1])
            lead = compare(first, second) if first else None
            p_holm = p_values[task, order[0], order[1]]
        beaten = [other for other in order[1:] if p_values[task, order[0], other] <= ALPHA]
        found.append(
            Standing(
                task, order, lead, p_holm, beaten, sum(not math.isnan(p) for p in p_values.values())
            )
        )
    return found


def standing_order(table: Table, task: str) -> list[Setting]:
    """Settings by mean score, the highest first; those without a score are missing."""
    means = {
        setting: one.mean for setting in table.settings if (one := table.summary(setting, task))
    }
    return sorted(
        (setting for setting in means if not math.isnan(means[setting])),
        key=lambda one: -means[one],
    )


def _shared(
    table: Table, task: str, first: Setting, second: Setting
) -> tuple[list[float], list[float]]:
    mine, theirs = table.scores(first, task), table.scores(second, task)
    seeds = sorted(mine.keys() & theirs.keys())
    return [mine[seed] for seed in seeds], [theirs[seed] for seed in seeds]


def _p_value(first: Sequence[float], second: Sequence[float]) -> float:
    return paired_t(np.subtract(first, second)) if len(first) > 1 else math.nan


def headline(table: Table, found: Sequence[Standing]) -> str:
    """The one sentence that matters."""
    if len(found) == 1:
        return f"{found[0].task}: {in_short(table, found[0])}"
    compared = [one for one in found if len(one.order) > 1]
    if not compared:
        return f"One setting on {len(found)} tasks: there is nothing to compare."
    rest = "every other" if max(len(one.order) for one in compared) > 2 else "the other"
    apart = [one for one in compared if one.verdict == "told apart"]
    if apart:
        names = "; ".join(f"{one.task}: {table.label(one.order[0])}" for one in apart)
        return f"On {len(apart)} of {len(compared)} tasks the highest setting is told apart from {rest}. {names}."
    if all(one.verdict == "one seed" for one in compared):
        return f"One seed each on {len(compared)} tasks: which setting is best cannot be told from chance."
    return f"On none of {len(compared)} tasks is the highest setting told apart from {rest}."


def in_short(table: Table, one: Standing) -> str:
    """A task's result without the numbers behind the verdict."""
    if len(one.order) < 2 or one.tied:
        return sentence(table, one)
    others = len(one.order) - 1
    apart = {
        "one seed": "but without two seeds in common with the next, nothing can be said of chance",
        "not told apart": f"but not told apart from {'any other' if others > 1 else 'the other'}",
        "in part": f"and told apart from {len(one.beaten)} of {others} others",
        "told apart": f"and told apart from {'every other' if others > 1 else 'the other'}",
    }
    summary = table.summary(one.order[0], one.task)
    assert summary is not None
    reached = f"{number(summary.mean)} {table.metrics[one.task]}"
    return f"{table.label(one.order[0])} is highest, {reached}, {apart[one.verdict]}."


def sentence(table: Table, one: Standing) -> str:
    """A task's result: the best setting, its lead, and whether it is more than chance."""
    if not one.order:
        return "no run has a score."
    best = one.order[0]
    summary = table.summary(best, one.task)
    assert summary is not None
    over = f" on average over {summary.n} seeds" if summary.n > 1 else ""
    reached = f"{number(summary.mean)} {table.metrics[one.task]}{over}"
    if len(one.order) == 1:
        parameters = sizes_and_scores(table, one.task)[0].parameters
        return f"{table.label(best)} reaches {reached}, with {parameters:,.0f} adapter parameters."
    second = table.label(one.order[1])
    if one.tied:
        return f"{table.label(best)} and {second} score alike, {reached}."
    return f"{table.label(best)} is highest, {reached}, {_lead(one, second)}."


def _lead(one: Standing, second: str) -> str:
    others = len(one.order) - 1
    if one.lead is None:
        return f"but has no seed in common with the next, {second}, so nothing can be said of the difference"
    by = f"{one.lead.difference:+.4f} over {second}"
    if one.verdict == "one seed":
        return f"{by}; one seed tells nothing of chance"
    doubt = f"{by}, 95 % interval {one.lead.low:+.4f} to {one.lead.high:+.4f}, p = {one.p_holm:.3f}"
    if one.verdict == "told apart":
        return (
            f"and told apart from {'every other setting' if others > 1 else 'the other'} ({doubt})"
        )
    if one.verdict == "in part":
        return f"told apart from {len(one.beaten)} of {others} others (next: {doubt})"
    return f"but not told apart from {'any other' if others > 1 else 'the other'} ({doubt})"


class Point(NamedTuple):
    """A setting's size and score on a task."""

    parameters: float
    score: float
    setting: Setting


def sizes_and_scores(table: Table, task: str) -> list[Point]:
    """Mean adapter parameters and mean score of every setting with a score, the smallest first."""
    points = []
    for setting in standing_order(table, task):
        runs, summary = table.cells[setting, task].values(), table.summary(setting, task)
        assert summary is not None
        points.append(
            Point(
                float(np.mean([run.results["adapter_parameters"] for run in runs])),
                summary.mean,
                setting,
            )
        )
    return sorted(points, key=lambda point: point[:2])


def undominated(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in one without losing in the other."""
    return [
        one
        for one in points
        if not any(p <= one[0] and s >= one[1] and (p < one[0] or s > one[1]) for p, s, _ in points)
    ]


def best_under(points: Sequence[Point], limit: float) -> Point | None:
    """The highest score with at most `limit` adapter parameters; None where all are larger."""
    return max(
        (point for point in points if point.parameters <= limit),
        key=lambda point: point.score,
        default=None,
    )


def without_mean(table: Table, task: str) -> str:
    """A sentence that names the settings with a seed that has no score, which are not ranked; empty where there are none."""
    names = [
        f"{table.label(setting)} ({one.undefined} of {one.n} seeds)"
        for setting in table.settings
        if (one := table.summary(setting, task)) and one.undefined
    ]
    return f"Not ranked, for seeds without a score: {', '.join(names)}." if names else ""


def number(value: float) -> str:
    """A score as its scale deserves: 0.8412, 84.12."""
    return "-" if math.isnan(value) else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
