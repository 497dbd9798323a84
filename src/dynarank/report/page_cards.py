"""What stands in the cards of a page: a card for each task's result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dynarank.report.baselines import Baseline, baseline_line, collapsed_line, task_baseline
from dynarank.report.comparisons import Standing, standings
from dynarank.report.findings import in_short, number, sentence, without_mean
from dynarank.report.page_rows import score_name
from dynarank.report.significance import Summary
from dynarank.report.sizes import Point, sizes_and_scores
from dynarank.report.tables import Setting, Table

MOST_DOT_ROWS = 10
"""The settings whose seeds stand as dots in a task's card."""


@dataclass(frozen=True)
class DotRow:
    """A setting's scores, as places on a strip from 0 to 100."""

    setting: Setting
    mean: Summary
    mean_place: float
    places: list[float]
    words: str
    """Every seed's score, for those who do not see the dots."""


@dataclass(frozen=True)
class Dots:
    """The strips of a card, all on one scale."""

    rows: list[DotRow]
    low: float
    high: float
    more: int
    """How many settings have no strip."""
    baseline: float | None
    """The place of the score without learning, if it lies on the scale."""


@dataclass(frozen=True)
class Card:
    """A task's result."""

    standing: Standing
    sentence: str
    other: str
    """The result by the other score."""
    unranked: str
    baseline: str
    collapsed: str
    """A sentence about the runs that predict the same for every row, if there are any."""
    dots: Dots
    sizes: list[Point]


def cards(tables: Sequence[Table]) -> list[Card]:
    """Return a card for each task."""
    table, other_table = tables
    made = []
    for standing, other in zip(standings(table), standings(other_table), strict=True):
        task = standing.task
        made.append(
            Card(
                standing=standing,
                sentence=sentence(table, standing),
                other=_other_score(table, standing, other_table, other),
                unranked=without_mean(table, task),
                baseline=baseline_line(table, task),
                collapsed=collapsed_line(table, task),
                dots=_dots(table, standing),
                sizes=sizes_and_scores(table, task),
            )
        )
    return made


def _other_score(table: Table, standing: Standing, other_table: Table, other: Standing) -> str:
    name = score_name(other_table)
    text = in_short(other_table, other)
    if in_short(table, standing) == text:
        return f"The {name} score says the same."
    return f"By the {name} score: {text}"


def _dots(table: Table, standing: Standing) -> Dots:
    """Return the seeds' scores and means, as percentages of the span of those that are shown."""
    rows = []
    for setting in standing.order[:MOST_DOT_ROWS]:
        rows.append((setting, table.scores(setting, standing.task)))
    values = []
    for _, scores in rows:
        values += [score for score in scores.values() if not math.isnan(score)]
    if not values:
        return Dots(rows=[], low=math.nan, high=math.nan, more=0, baseline=None)
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    strips = []
    for setting, scores in rows:
        summary = table.summary(setting, standing.task)
        assert summary is not None
        words = [f"seed {seed}: {number(score)}" for seed, score in sorted(scores.items())]
        strips.append(
            DotRow(
                setting=setting,
                mean=summary,
                mean_place=100 * (summary.mean - low) / span,
                places=[100 * (score - low) / span for score in scores.values()],
                words=", ".join(words),
            )
        )
    place = _baseline_place(task_baseline(table, standing.task), low, span)
    more = len(standing.order) - len(rows)
    return Dots(rows=strips, low=low, high=high, more=more, baseline=place)


def _baseline_place(baseline: Baseline | None, low: float, span: float) -> float | None:
    if baseline is None:
        return None
    place = 100 * (baseline.score - low) / span
    return place if 0 <= place <= 100 else None
