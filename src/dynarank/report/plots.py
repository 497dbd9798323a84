"""Pictures of runs over the steps: scores, losses, budgets and the allocator's scores, with bands over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dynarank.report.findings import standing_order
from dynarank.report.runs import Run
from dynarank.report.tables import Setting, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Dashes = str | tuple[int, tuple[int, ...]]
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F"]
"""Okabe and Ito's, which colour-blind readers tell apart, with a darker yellow."""
DASHES: list[Dashes] = [
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (8, 2)),
    (0, (3, 1)),
    (0, (1, 2)),
]
"""A line's second mark, for those who see no colour."""
GREY = "#999999"
POINTS = 60
"""Places along the steps at which seeds are averaged."""
QUANTILES = tuple(f"score/q{q:02d}" for q in (5, 25, 50, 75, 95))


def brief(name: str, most: int = 60) -> str:
    """A name as pictures have room for."""
    return name if len(name) <= most else f"{name[: most - 3]}..."


class Look(NamedTuple):
    """How a setting is drawn."""

    colour: str
    dashes: Dashes
    label: str | None
    """In the legend; None for those that are only background."""


def looks(table: Table, task: str) -> dict[Setting, Look]:
    """A colour and a dash for each setting: of more than there are colours, for the best on this task; grey for the rest."""
    few = len(table.settings) <= len(COLOURS)
    chosen = table.settings if few else standing_order(table, task)[: len(COLOURS)]
    found = {}
    for setting in table.settings:
        if setting in chosen:
            index = chosen.index(setting)
            found[setting] = Look(COLOURS[index], DASHES[index], brief(table.label(setting)))
        else:
            found[setting] = Look(GREY, "-", None)
    return found


def shared_settings(table: Table, task: str, column: str) -> dict[Setting, list[Run]]:
    """The runs of each setting on a task whose history has the column with any value in it."""
    found = {}
    for setting in table.settings:
        runs = table.cells.get((setting, task), {}).values()
        if having := [
            run for run in runs if column in run.history and run.history[column].notna().any()
        ]:
            found[setting] = having
    return found


def over_seeds(runs: Sequence[Run], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Shares of training (points,) and the column there (seeds, points). Many values are averaged over the points' bins."""
    curves = [_curve(run, column) for run in runs]
    grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), POINTS)
    return grid, np.stack([np.interp(grid, x, y) for x, y in curves])


def _curve(run: Run, column: str) -> tuple[np.ndarray, np.ndarray]:
    last = max(1, run.history["step"].max())
    rows = (
        run.history[["step", column]]
        .dropna()
        .drop_duplicates("step", keep="last")
        .sort_values("step")
    )
    x, y = rows["step"].to_numpy(dtype=float) / last, rows[column].to_numpy(dtype=float)
    if len(x) > POINTS:
        parts = np.array_split(np.arange(len(x)), POINTS)
        x, y = (np.asarray([values[part].mean() for part in parts]) for values in (x, y))
    return x, y


def draw_band(axes: Axes, runs: Sequence[Run], column: str, look: Look, scale: float = 1.0) -> None:
    """A line of the mean over seeds, and a band of their range; only the line for a setting in the background."""
    grid, values = over_seeds(runs, column)
    values = values * scale
    marker = "o" if grid[0] == grid[-1] else None  # seen once
    width, order = (1.8, 3) if look.label else (0.8, 1)
    axes.plot(grid, values.mean(axis=0), color=look.colour, linestyle=look.dashes, linewidth=width,
              label=look.label, marker=marker, markersize=4, zorder=order)  # fmt: skip
    if look.label and len(runs) > 1:
        axes.fill_between(
            grid, values.min(axis=0), values.max(axis=0), color=look.colour, alpha=0.15, linewidth=0
        )


def draw_curves(table: Table, task: str) -> Figure:
    """The task's score over the share of training, a line a setting; the band spans the seeds."""
    figure, (axes,) = panels(1, legend=len(table.settings))
    metric = table.metrics[task]
    for setting, runs in shared_settings(table, task, f"val/{metric}").items():
        look, seeds = looks(table, task)[setting], len(table.cells[setting, task])
        if look.label and len(runs) < seeds:
            look = look._replace(label=f"{look.label} ({len(runs)} of {seeds} seeds)")
        draw_band(axes, runs, f"val/{metric}", look)
    axes.set(ylabel=f"{metric} (validation)", xlabel="share of training")
    mark_freeze(axes, table, task)
    return titled(figure, axes, table, f"{brief(task, 30)}: score", task)


def draw_losses(table: Table, task: str) -> Figure | None:
    """The loss in training and in validation, each with its band; None where neither was kept."""
    columns = [name for name in ("train/loss", "val/loss") if shared_settings(table, task, name)]
    if not columns:
        return None
    figure, rows = panels(len(columns), legend=len(table.settings))
    for axes, column in zip(rows, columns, strict=True):
        for setting, runs in shared_settings(table, task, column).items():
            draw_band(axes, runs, column, looks(table, task)[setting])
        axes.set_ylabel("training loss" if column == "train/loss" else "validation loss")
        mark_freeze(axes, table, task)
    rows[-1].set_xlabel("share of training")
    return titled(figure, rows[0], table, f"{brief(task, 30)}: loss", task)


def draw_budgets(table: Table, task: str) -> Figure | None:
    """Scheduled budget and nonzero components a matrix; None where no method has a budget."""
    settings = shared_settings(table, task, "budget/scheduled")
    if not settings:
        return None
    figure, (top, bottom) = panels(2, legend=len(settings))
    for setting, runs in settings.items():
        look = looks(table, task)[setting]
        draw_band(top, runs, "budget/scheduled", look)
        draw_band(bottom, runs, "budget/nonzero", look, 1 / max(1, len(runs[0].ranks)))
    for axes, name in ((top, "scheduled"), (bottom, "nonzero")):
        axes.set_ylabel(f"{name}\ncomponents a matrix")
        axes.set_ylim(bottom=0)
        mark_freeze(axes, table, task)
    bottom.set_xlabel("share of training")
    return titled(
        figure, top, table, f"{brief(task, 30)}: budget, and components that are not zero", task
    )


def draw_score_spread(table: Table, task: str) -> Figure | None:
    """How the components' smoothed scores spread, a panel a setting (the eight best); None where no method scores."""
    settings = shared_settings(table, task, QUANTILES[2])
    shown = [
        setting
        for setting in looks(table, task)
        if setting in settings and looks(table, task)[setting].label
    ]
    if not shown:
        return None
    from matplotlib.figure import Figure

    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(7, 1.2 + 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for axes, setting in zip(grid.flat, shown, strict=False):
        draw_quantiles(axes, settings[setting])
        axes.set_title(brief(table.label(setting), 44), fontsize=8, loc="left")
        mark_freeze(axes, table, task)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("share of training")
    figure.supylabel("smoothed score of a component", fontsize=9)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(
        f"{brief(task, 30)}: scores of components, mean of each quantile over seeds", fontsize=10
    )
    return figure


def draw_quantiles(axes: Axes, runs: Sequence[Run]) -> None:
    """A fan: median, 25 to 75 %, 5 to 95 %."""
    grid, _ = over_seeds(runs, QUANTILES[0])
    low, lower, middle, upper, high = (over_seeds(runs, name)[1].mean(axis=0) for name in QUANTILES)
    axes.fill_between(grid, low, high, color=COLOURS[0], alpha=0.18, linewidth=0, label="5 to 95 %")
    axes.fill_between(
        grid, lower, upper, color=COLOURS[0], alpha=0.38, linewidth=0, label="25 to 75 %"
    )
    axes.plot(grid, middle, color=COLOURS[0], label="median")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def draw_allocation(run: Run) -> Figure:
    """A run's scheduled budget and nonzero components, and the spread of its scores."""
    figure, (top, bottom) = panels(2, legend=0)
    draw_band(top, [run], "budget/scheduled", Look(COLOURS[0], "-", "scheduled"))
    draw_band(
        top, [run], "budget/nonzero", Look(COLOURS[1], "--", "nonzero"), 1 / max(1, len(run.ranks))
    )
    top.set(
        ylabel="components a matrix",
        title=f"{brief(run.results['task'], 30)}, seed {run.seed}: allocation",
    )
    top.set_ylim(bottom=0)
    draw_quantiles(bottom, [run])
    bottom.set(xlabel="share of training", ylabel="smoothed score")
    for axes in (top, bottom):
        axes.legend(fontsize=8, frameon=False)
    return figure


def panels(rows: int, legend: int) -> tuple[Figure, list[Axes]]:
    """A figure of panels above each other, with room for a legend of so many entries below."""
    from matplotlib.figure import Figure

    height = 3.4 if rows == 1 else 2.3 * rows + 0.6
    figure = Figure(figsize=(7, height + 0.2 * min(legend, len(COLOURS) + 1)), layout="constrained")
    axes = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    return figure, axes


def titled(figure: Figure, axes: Axes, table: Table, title: str, task: str) -> Figure:
    """The title, and a legend below."""
    figure.suptitle(title, fontsize=11)
    handles, labels = axes.get_legend_handles_labels()
    background = [setting for setting, look in looks(table, task).items() if look.label is None]
    if background:
        from matplotlib.lines import Line2D

        handles.append(Line2D([], [], color=GREY, linewidth=0.8))
        labels.append(f"{len(background)} others")
    if len(handles) > 1:
        figure.legend(
            handles, labels, loc="outside lower center", fontsize=8, frameon=False, handlelength=3.5
        )
    return figure


def mark_freeze(axes: Axes, table: Table, task: str) -> None:
    """A dotted line where ranks are frozen, if it is the same for all runs that freeze: only scores after it count."""
    runs = [
        run for setting in table.settings for run in table.cells.get((setting, task), {}).values()
    ]
    shares = [
        run.prunings[-1][0] / run.results["total_steps"] for run in runs if len(run.prunings) > 1
    ]
    if shares and max(shares) - min(shares) < 0.02:
        axes.axvline(max(shares), color=GREY, linestyle=":", linewidth=1, zorder=0)
        axes.annotate("ranks frozen", (max(shares), 1), xycoords=axes.get_xaxis_transform(), xytext=(3, -9),
                      textcoords="offset points", fontsize=7, color="#666666")  # fmt: skip
