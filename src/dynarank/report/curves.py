"""What metrics.csv holds of a quantity: one curve a run, and the mean over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dynarank.report.runs import Run
from dynarank.report.tables import Setting, Table

MOST_POINTS = 200
"""Values of one curve beyond this number are averaged over equal stretches of steps."""


class Curve(NamedTuple):
    """A quantity at the optimizer steps where it was measured."""

    steps: np.ndarray
    """Optimizer steps (points,), ascending."""
    values: np.ndarray
    """(points,) for one run, (seeds, points) for several."""


def run_curve(run: Run, column: str) -> Curve:
    """Return a column of a run's history, as measured; averaged if there are many values."""
    steps, values = run.column("step"), run.column(column)
    measured = ~(np.isnan(steps) | np.isnan(values))
    # Of several values at one step the last counts. np.unique takes the first, so the order is
    # turned round.
    steps, places = np.unique(steps[measured][::-1], return_index=True)
    values = values[measured][::-1][places]
    if len(steps) > MOST_POINTS:
        steps = np.asarray([part.mean() for part in np.array_split(steps, MOST_POINTS)])
        values = np.asarray([part.mean() for part in np.array_split(values, MOST_POINTS)])
    return Curve(steps, values)


def seed_curves(runs: Sequence[Run], column: str) -> Curve | None:
    """Return the runs' values at the steps where all of them were measured, (seeds, points).

    Nothing is interpolated. None where the runs have fewer than two steps in common, although
    they were measured at more.
    """
    curves = [run_curve(run, column) for run in runs]
    common = curves[0].steps
    for curve in curves[1:]:
        common = np.intersect1d(common, curve.steps)
    measured = max(len(curve.steps) for curve in curves)
    if len(common) < min(2, measured):
        return None
    rows = [curve.values[np.isin(curve.steps, common)] for curve in curves]
    return Curve(common, np.stack(rows))


def runs_with(table: Table, task: str, column: str) -> dict[Setting, list[Run]]:
    """Return the runs of each setting on a task whose history has a value in the column."""
    by_setting = {}
    for setting in table.settings:
        runs = []
        for run in table.cell(setting, task):
            if run.has(column):
                runs.append(run)
        if runs:
            by_setting[setting] = runs
    return by_setting
