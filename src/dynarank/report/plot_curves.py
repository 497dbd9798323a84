"""Pictures over the steps: scores, losses, budgets and the allocator's scores.

Lines are means over seeds, bands the range that seeds span. A marker stands at each measurement,
and straight lines join them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dynarank.report.baselines import task_baseline
from dynarank.report.curves import run_curve, runs_with, seed_curves
from dynarank.report.plot_style import (
    COLOURS,
    GREY,
    WIDTH,
    Look,
    brief,
    grid_shape,
    hide_from,
    looks,
    mark_freeze,
    panels,
    plain_frame,
    titled,
    whole_steps,
)
from dynarank.report.runs import Run
from dynarank.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUANTILES = ("score/q05", "score/q25", "score/q50", "score/q75", "score/q95")
MOST_MARKERS = 40
"""A line of more measurements than this is drawn without markers, which would cover it."""


def draw_band(axes: Axes, runs: Sequence[Run], column: str, look: Look, scale: float = 1.0) -> None:
    """Draw the mean over seeds, and a band of their range; for the background only the line.

    Seeds that were measured at different steps have a line each.
    """
    mean = seed_curves(runs, column)
    if mean is None:
        for number, run in enumerate(runs):
            # One entry in the legend for all of them.
            own = look if number == 0 else look._replace(label=None)
            curve = run_curve(run, column)
            _draw_line(axes, curve.steps, scale * curve.values, own, background=not look.label)
        return
    values = scale * mean.values
    _draw_line(axes, mean.steps, values.mean(axis=0), look, background=not look.label)
    if look.label and len(runs) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(mean.steps, low, high, color=look.colour, alpha=0.15, linewidth=0)


def _draw_line(
    axes: Axes, steps: np.ndarray, values: np.ndarray, look: Look, background: bool
) -> None:
    few = len(steps) <= MOST_MARKERS
    axes.plot(
        steps,
        values,
        color=look.colour,
        linestyle=look.dashes,
        linewidth=0.8 if background else 1.6,
        label=look.label,
        marker=look.marker if few and not background else None,
        markersize=4,
        zorder=1 if background else 3,
    )


def draw_curves(table: Table, task: str) -> Figure:
    """Draw the task's score, a line a setting, and the score of a model that learned nothing."""
    figure, (axes,) = panels(1, legend=len(table.settings))
    metric = table.metrics[task]
    look_by_setting = looks(table, task)
    for setting, runs in runs_with(table, task, f"val/{metric}").items():
        look, seeds = look_by_setting[setting], len(table.cells[setting, task])
        if look.label and len(runs) < seeds:
            look = look._replace(label=f"{look.label} ({len(runs)} of {seeds} seeds)")
        draw_band(axes, runs, f"val/{metric}", look)
    baseline = task_baseline(table, task)
    if baseline is not None:
        axes.axhline(baseline.score, color=GREY, linestyle="--", linewidth=1, zorder=0)
        axes.annotate(
            f"nothing learned ({brief(baseline.name, 30)})",
            (0, baseline.score),
            xycoords=("axes fraction", "data"),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=7,
            color="#666666",
        )
    axes.set_ylabel(f"{brief(metric, 40)} (validation)")
    whole_steps(axes)
    mark_freeze(axes, table, task)
    return titled(figure, axes, f"{brief(task, 30)}: score", look_by_setting)


def draw_losses(table: Table, task: str) -> Figure | None:
    """Draw the loss in training and in validation; return None where neither was kept."""
    names = {"train/loss": "training loss", "val/loss": "validation loss"}
    columns = {column: runs_with(table, task, column) for column in names}
    kept = [column for column in names if columns[column]]
    if not kept:
        return None
    figure, rows = panels(len(kept), legend=len(table.settings))
    look_by_setting = looks(table, task)
    for axes, column in zip(rows, kept, strict=True):
        for setting, runs in columns[column].items():
            draw_band(axes, runs, column, look_by_setting[setting])
        axes.set_ylabel(names[column])
        mark_freeze(axes, table, task)
    whole_steps(rows[-1])
    return titled(figure, rows[0], f"{brief(task, 30)}: loss", look_by_setting)


def draw_budgets(table: Table, task: str) -> Figure | None:
    """Draw the scheduled budget and the nonzero components a matrix, for methods with a budget."""
    settings = runs_with(table, task, "budget/scheduled")
    if not settings:
        return None
    figure, (top, bottom) = panels(2, legend=len(settings))
    look_by_setting = looks(table, task)
    for setting, runs in settings.items():
        look = look_by_setting[setting]
        draw_band(top, runs, "budget/scheduled", look)
        # The history counts them over the whole model, and the scheduled budget a matrix.
        with_nonzero = [run for run in runs if "budget/nonzero" in run.history]
        if with_nonzero:
            per_matrix = 1 / max(1, len(runs[0].ranks))
            draw_band(bottom, with_nonzero, "budget/nonzero", look, per_matrix)
    for axes, name in ((top, "scheduled"), (bottom, "nonzero")):
        axes.set_ylabel(f"{name}\ncomponents a matrix")
        axes.set_ylim(bottom=0)
        mark_freeze(axes, table, task)
    whole_steps(bottom)
    title = f"{brief(task, 30)}: budget, and components that are not zero"
    return titled(figure, top, title, look_by_setting)


def draw_score_spread(table: Table, task: str) -> Figure | None:
    """Draw how the components' smoothed scores spread, a panel a setting, the eight best.

    Return None where no method scores components.
    """
    from matplotlib.figure import Figure

    settings = {}
    for setting, runs in runs_with(table, task, QUANTILES[2]).items():
        complete = [run for run in runs if has_quantiles(run)]
        if complete and looks(table, task)[setting].label:
            settings[setting] = complete
    if not settings:
        return None
    rows, columns = grid_shape(len(settings), 2)
    figure = Figure(figsize=(WIDTH, 1.3 + 1.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for axes, (setting, runs) in zip(grid.flat, settings.items(), strict=False):
        draw_quantiles(axes, runs)
        axes.set_title(brief(table.label(setting), 30), fontsize=8, loc="left", pad=11)
        mark_freeze(axes, table, task)
    hide_from(list(grid.flat), len(settings))
    for axes in grid[-1]:
        whole_steps(axes)
    figure.supylabel("smoothed score of a component", fontsize=9)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    title = f"{brief(task, 30)}: scores of components,\nmean of each quantile over seeds"
    figure.suptitle(title, fontsize=10)
    return figure


def has_quantiles(run: Run) -> bool:
    """Return whether a run's history holds the quantiles of the components' scores."""
    return all(run.has(name) for name in QUANTILES)


def draw_quantiles(axes: Axes, runs: Sequence[Run]) -> None:
    """Draw a fan: the median, 25 to 75 %, 5 to 95 %. Of several runs, the mean of each."""
    steps = np.empty(0)
    means = []
    for name in QUANTILES:
        curve = seed_curves(runs, name) or seed_curves(runs[:1], name)
        assert curve is not None  # One run has its own steps in common with itself.
        steps = curve.steps
        means.append(curve.values.mean(axis=0))
    low, lower, middle, upper, high = means
    colour = COLOURS[0]
    axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0, label="5 to 95 %")
    axes.fill_between(
        steps, lower, upper, color=colour, alpha=0.38, linewidth=0, label="25 to 75 %"
    )
    axes.plot(steps, middle, color=colour, label="median")
    plain_frame(axes)
    axes.tick_params(labelsize=8)


def draw_allocation(run: Run) -> Figure | None:
    """Draw a run's scheduled budget and nonzero components, and the spread of its scores.

    Return None where its method has no budget.
    """
    needed = ("budget/scheduled", "budget/nonzero")
    if not has_quantiles(run) or not all(name in run.history for name in needed):
        return None
    figure, (top, bottom) = panels(2, legend=0)
    per_matrix = 1 / max(1, len(run.ranks))
    draw_band(top, [run], needed[0], Look(COLOURS[0], "-", "o", "scheduled"))
    draw_band(top, [run], needed[1], Look(COLOURS[1], "--", "s", "nonzero"), per_matrix)
    top.set_ylabel("components a matrix")
    top.set_title(f"{brief(run.task, 30)}, seed {run.seed}: allocation")
    top.set_ylim(bottom=0)
    draw_quantiles(bottom, [run])
    bottom.set_ylabel("smoothed score")
    whole_steps(bottom)
    for axes in (top, bottom):
        axes.legend(fontsize=8, frameon=False)
    return figure
