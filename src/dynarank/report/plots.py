"""Pictures of runs: curves with seed bands, budget against quality, ranks through training, ranks side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from dynarank.report.runs import Run
from dynarank.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
"""Okabe and Ito's, which colour-blind readers tell apart."""


def draw_curves(table: Table, task: str) -> Figure:
    """The task's score over the share of training, a line a setting; the band spans the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for index, setting in enumerate(table.settings):
        runs = table.cells.get((setting, task), {}).values()
        curves = [_curve(run, table.metrics[task]) for run in runs]
        if not curves:
            continue
        grid = np.linspace(max(x[0] for x, _ in curves), 1, 50)
        values = np.stack([np.interp(grid, x, y) for x, y in curves])  # (seeds, 50)
        colour = COLOURS[index % len(COLOURS)]
        marker = "o" if grid[0] == grid[-1] else None  # scored once
        axes.plot(grid, values.mean(axis=0), color=colour, label=table.label(setting), marker=marker)
        axes.fill_between(grid, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="share of training", ylabel=table.metrics[task], title=f"{task}: mean and range over seeds")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _curve(run: Run, metric: str) -> tuple[np.ndarray, np.ndarray]:
    rows = run.history[["step", f"val/{metric}"]].dropna().drop_duplicates("step", keep="last").sort_values("step")
    return rows["step"].to_numpy() / max(1, rows["step"].max()), rows[f"val/{metric}"].to_numpy()


def draw_budget_against_quality(table: Table, task: str) -> Figure:
    """Mean score over adapter parameters; the settings that none beats with fewer are joined."""
    from matplotlib.figure import Figure

    points = []
    for setting in table.settings:
        runs = list(table.cells.get((setting, task), {}).values())
        if runs:
            parameters = float(np.mean([run.results["adapter_parameters"] for run in runs]))
            points.append((parameters, float(np.mean([run.score(table.last) for run in runs])), table.label(setting)))
    points.sort()
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    best = undominated(points)
    axes.plot([p[0] for p in best], [p[1] for p in best], color=COLOURS[0], linewidth=1, zorder=1)
    axes.scatter([p[0] for p in points], [p[1] for p in points], color=COLOURS[1], zorder=2)
    for parameters, score, label in points:
        axes.annotate(label, (parameters, score), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(
        xlabel="adapter parameters", ylabel=f"{table.metrics[task]} (mean over seeds)", title=f"{task}: budget, quality"
    )
    axes.margins(0.15)
    _plain_scales(axes, [p[0] for p in points], [p[1] for p in points])
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _plain_scales(axes: Axes, parameters: Sequence[float], scores: Sequence[float]) -> None:
    """Numbers as they are; a logarithmic axis where sizes span it; no zoom into differences that are nothing."""
    if min(parameters) > 0 and max(parameters) > 5 * min(parameters):
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    least = 0.02 * max(1e-9, *(abs(score) for score in scores))
    middle, span = (max(scores) + min(scores)) / 2, max(scores) - min(scores)
    if span < least:
        axes.set_ylim(middle - least, middle + least)
    axes.yaxis.get_major_formatter().set_useOffset(False)  # type: ignore[attr-defined]


def undominated(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Those (parameters, score, label) that no other beats in one without losing in the other."""
    return [
        one for one in points if not any(p <= one[0] and s >= one[1] and (p < one[0] or s > one[1]) for p, s, _ in points)
    ]


def draw_allocation(run: Run) -> Figure:
    """A run's scheduled budget and nonzero components, and the spread of its scores, over the steps."""
    from matplotlib.figure import Figure

    history = run.history.dropna(subset=["budget/scheduled"])
    figure = Figure(figsize=(7, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    layers = max(1, len(run.ranks))
    top.plot(history["step"], history["budget/scheduled"], color=COLOURS[0], label="scheduled")
    top.plot(history["step"], history["budget/nonzero"] / layers, color=COLOURS[1], label="nonzero")
    top.set(ylabel="components a layer", title=f"{run.results['task']}, seed {run.seed}: allocation")
    top.legend(fontsize=8, frameon=False)
    names = [f"score/q{q:02d}" for q in (5, 25, 50, 75, 95)]
    scores = history[["step", *names]].dropna()
    bottom.fill_between(scores["step"], scores[names[0]], scores[names[4]], color=COLOURS[0], alpha=0.15, label="5 to 95 %")
    bottom.fill_between(scores["step"], scores[names[1]], scores[names[3]], color=COLOURS[0], alpha=0.3, label="25 to 75 %")
    bottom.plot(scores["step"], scores[names[2]], color=COLOURS[0], label="median")
    bottom.set(xlabel="optimizer step", ylabel="smoothed score")
    bottom.legend(fontsize=8, frameon=False)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def rank_agreement(runs: Sequence[Run]) -> float:
    """Mean Spearman correlation of the ranks of every two runs over their common matrices; NaN where there is none."""
    found = []
    for index, first in enumerate(runs):
        for second in runs[index + 1 :]:
            names = [name for name in first.ranks if name in second.ranks]
            a, b = [first.ranks[n] for n in names], [second.ranks[n] for n in names]
            if len(set(a)) > 1 and len(set(b)) > 1:
                found.append(float(stats.spearmanr(a, b)[0]))
    return float(np.mean(found)) if found else math.nan
