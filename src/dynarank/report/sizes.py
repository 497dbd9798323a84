"""What each size of adapter scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dynarank.report.tables import Setting, Table


class Point(NamedTuple):
    """A setting's size and score on a task."""

    parameters: float
    """Mean adapter parameters."""
    score: float
    """Mean score."""
    setting: Setting


def sizes_and_scores(table: Table, task: str) -> list[Point]:
    """Return size and score of every setting with a mean score, the smallest first."""
    points = []
    for setting in table.order(task):
        summary = table.summary(setting, task)
        assert summary is not None
        points.append(
            Point(parameters=table.parameters(setting, task), score=summary.mean, setting=setting)
        )
    return sorted(points, key=lambda point: (point.parameters, point.score))


def undominated(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in size or score without losing in the other."""
    chosen = []
    for point in points:
        if not any(_dominates(other, point) for other in points):
            chosen.append(point)
    return chosen


def _dominates(other: Point, point: Point) -> bool:
    if other.parameters > point.parameters or other.score < point.score:
        return False
    return other.parameters < point.parameters or other.score > point.score


def best_under(points: Sequence[Point], limit: float) -> Point | None:
    """Return the highest score with at most `limit` parameters; None where all are larger."""
    fitting = [point for point in points if point.parameters <= limit]
    return max(fitting, key=lambda point: point.score, default=None)
