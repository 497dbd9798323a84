"""Rank maps side by side, and how far they agree under other seeds and other settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dynarank.report.agreement import agreement_matrix, rank_agreement
from dynarank.report.plot_style import PHONE_WIDTH, brief, hide_from
from dynarank.report.runs import Run
from dynarank.report.tables import Table
from dynarank.training.rank_map import rank_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

RHO = "\N{GREEK SMALL LETTER RHO}"
MOST_ROWS, MOST_COLUMNS = 6, 5
COLUMNS_ON_A_PHONE = 2
MOST_COMPARED = 12
"""The settings whose agreement is drawn; more could not be read."""


def ranked_groups(table: Table, task: str) -> list[tuple[str, list[Run]]]:
    """Return label and runs of each setting whose ranks differ between matrices, the best first."""
    groups = []
    for setting in table.order(task):
        runs = [run for run in table.cell(setting, task) if len(set(run.ranks.values())) > 1]
        if runs:
            groups.append((brief(table.label(setting)), runs))
    return groups


def draw_rank_maps(table: Table, task: str, phone: bool = False) -> Figure | None:
    """Draw a row a setting, a column a seed, coloured by rank over the run's mean rank.

    For a phone there are two seeds at most. Return None where there are no two maps.
    """
    from matplotlib.figure import Figure

    most_columns = COLUMNS_ON_A_PHONE if phone else MOST_COLUMNS
    groups = []
    all_runs: list[Run] = []
    for label, runs in ranked_groups(table, task)[:MOST_ROWS]:
        shown = runs[:most_columns]
        groups.append((label, shown))
        all_runs += shown
    if len(all_runs) < 2:
        return None
    columns = max(len(runs) for _, runs in groups)
    width, height = _maps_size(groups, columns)
    if phone:
        width = PHONE_WIDTH
    figure = Figure(figsize=(width, height), layout="constrained")
    rows = figure.subplots(len(groups), columns, squeeze=False)
    # One scale for all maps, so that their colours can be compared.
    largest = max(float(np.nanmax(_shares(run))) for run in all_runs)
    for axes_row, (label, runs) in zip(rows, groups, strict=True):
        for axes, run in zip(axes_row, runs, strict=False):
            image = _panel(axes, run, largest, named=axes is axes_row[0])
        hide_from(list(axes_row), len(runs))
        title = axes_row[0].annotate(
            _row_title(label, runs),
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, 16),
            textcoords="offset points",
            fontsize=8,
            fontweight="bold",
        )
        title.set_in_layout(False)  # The title would widen its column.
    figure.colorbar(
        image,
        ax=rows.ravel().tolist(),
        label="rank over the run's mean rank",
        location="bottom" if phone else "right",
        shrink=1 if phone else min(1, 2 / len(groups)),
    )
    if not phone:
        figure.supxlabel("layer", fontsize=9)
    title_text = f"{brief(task, 30)}: ranks side by side, by layer"
    title_text += f"\n({RHO}: rank correlation over matrices)"
    figure.suptitle(title_text, fontsize=10)
    return figure


def _maps_size(groups: Sequence[tuple[str, list[Run]]], columns: int) -> tuple[float, float]:
    """Return width and height in inches that give every cell of a map some room."""
    labels, values = rank_grid(groups[0][1][0].ranks)
    width = 2.1 + columns * max(1.3, 0.15 * values.shape[1])
    height = 1.5 + len(groups) * (0.65 + max(0.9, 0.15 * len(labels)))
    return min(60.0, max(6.5, width)), min(120.0, height)


def _row_title(label: str, runs: Sequence[Run]) -> str:
    agreement = rank_agreement(runs)
    if math.isnan(agreement):
        return label
    return f"{label}: mean {RHO} between seeds {agreement:+.2f}"


def _shares(run: Run) -> np.ndarray:
    """Return the run's rank grid over its mean rank, (matrices, layers)."""
    values = rank_grid(run.ranks)[1]
    return np.asarray(values / max(1e-9, float(np.nanmean(values))))


def _panel(axes: Axes, run: Run, largest: float, named: bool) -> AxesImage:
    labels, _ = rank_grid(run.ranks)
    image = axes.imshow(_shares(run), vmin=0, vmax=largest, cmap="cividis", aspect="auto")
    axes.set_title(f" \nseed {run.seed}", fontsize=8)  # The empty line is for the row's title.
    axes.set_yticks(range(len(labels)), labels if named else [""] * len(labels), fontsize=7)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=4)  # type: ignore[call-arg]
    axes.tick_params(length=0, labelsize=6)
    axes.spines[:].set_visible(False)
    return image


def draw_rank_agreement(table: Table, task: str) -> Figure | None:
    """Draw the mean rank correlation of runs with different seeds, between and within settings.

    For one setting the seeds are compared. Return None where there is nothing to compare.
    """
    from matplotlib.figure import Figure

    groups = ranked_groups(table, task)
    if len(groups) == 1:
        groups = [(f"seed {run.seed}", [run]) for run in groups[0][1]]
    total = len(groups)
    groups = groups[:MOST_COMPARED]
    if len(groups) < 2:
        return None
    matrix = agreement_matrix([runs for _, runs in groups])
    count = len(groups)
    size = max(4.8, 1.0 + 0.48 * count), 1.2 + 0.54 * count
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu", aspect="auto")
    numbers = [str(1 + index) for index in range(count)]
    axes.set_yticks(range(count), numbers, fontsize=10)
    axes.set_xticks(range(count), numbers, fontsize=10)
    for (row, column), value in np.ndenumerate(matrix):
        text = "-" if math.isnan(value) else f"{value:+.2f}"
        # Black and white themselves would become the page's colours (`inline_svg`).
        # RdBu is dark at both ends.
        colour = "#fefefe" if abs(value) > 0.65 else "#111111"
        fontsize = 10 if count <= 8 else 8
        axes.text(column, row, text, ha="center", va="center", fontsize=fontsize, color=colour)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    legend = "\n".join(f"{1 + index}   {label}" for index, (label, _) in enumerate(groups))
    figure.supxlabel(legend, fontsize=9, ha="left", x=0.02)
    title = f"{brief(task, 30)}: do ranks fall alike under another seed?"
    title += f"\nmean rank correlation {RHO} over matrices"
    if total > count:
        title += f"; the {count} best of {total}"
    figure.suptitle(title, fontsize=10)
    return figure
