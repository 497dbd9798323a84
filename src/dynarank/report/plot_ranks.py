"""Rank maps side by side, and how far they agree: does a preference repeat under another seed, or another budget?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dynarank.report.agreement import agreement_matrix, rank_agreement
from dynarank.report.findings import standing_order
from dynarank.report.plots import brief
from dynarank.report.runs import Run
from dynarank.report.tables import Table
from dynarank.training.rank_map import rank_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

RHO = "\N{GREEK SMALL LETTER RHO}"
MOST_ROWS, MOST_COLUMNS = 6, 5


def ranked_groups(table: Table, task: str) -> list[tuple[str, list[Run]]]:
    """Label and runs, by seed, of each setting whose ranks differ between matrices; the best settings first."""
    found = []
    for setting in standing_order(table, task):
        runs = [
            run
            for _, run in sorted(table.cells[setting, task].items())
            if len(set(run.ranks.values())) > 1
        ]
        if runs:
            found.append((brief(table.label(setting)), runs))
    return found


def draw_rank_maps(table: Table, task: str) -> Figure | None:
    """A row a setting, a column a seed, coloured by rank over the run's mean rank; None where there are no two maps."""
    from matplotlib.figure import Figure

    groups = [
        (label, runs[:MOST_COLUMNS]) for label, runs in ranked_groups(table, task)[:MOST_ROWS]
    ]
    if sum(len(runs) for _, runs in groups) < 2:
        return None
    columns = max(len(runs) for _, runs in groups)
    tall, wide = _shape(groups[0][1][0])
    size = (
        max(6.5, 2.1 + columns * max(1.3, 0.15 * wide)),
        1.5 + len(groups) * (0.65 + max(0.9, 0.15 * tall)),
    )
    figure = Figure(figsize=size, layout="constrained")
    rows = figure.subplots(len(groups), columns, squeeze=False)
    most = max(
        _shares(run).max(initial=0, where=~np.isnan(_shares(run)))
        for _, runs in groups
        for run in runs
    )
    for axes_row, (label, runs) in zip(rows, groups, strict=True):
        for axes, run in zip(axes_row, runs, strict=False):
            image = _panel(axes, run, most, named=axes is axes_row[0])
        for axes in axes_row[len(runs) :]:
            axes.set_visible(False)
        title = axes_row[0].annotate(_row_title(label, runs), (0, 1), xycoords="axes fraction", xytext=(0, 16),
                                     textcoords="offset points", fontsize=8, fontweight="bold")  # fmt: skip
        title.set_in_layout(False)  # or it would widen its column
    figure.colorbar(
        image,
        ax=rows.ravel().tolist(),
        label="rank over the run's mean rank",
        shrink=min(1, 2 / len(groups)),
    )
    figure.supxlabel("layer", fontsize=9)
    figure.suptitle(
        f"{brief(task, 30)}: ranks side by side ({RHO}: rank correlation over matrices)",
        fontsize=10,
    )
    return figure


def _row_title(label: str, runs: Sequence[Run]) -> str:
    agreement = rank_agreement(runs)
    return label if math.isnan(agreement) else f"{label}: mean {RHO} between seeds {agreement:+.2f}"


def _shape(run: Run) -> tuple[int, int]:
    labels, values = rank_grid(run.ranks)
    return len(labels), values.shape[1]


def _shares(run: Run) -> np.ndarray:
    values = rank_grid(run.ranks)[1]
    return np.asarray(values / max(1e-9, float(np.nanmean(values))))


def _panel(axes: Axes, run: Run, most: float, named: bool) -> AxesImage:
    labels, _ = rank_grid(run.ranks)
    image = axes.imshow(_shares(run), vmin=0, vmax=most, cmap="cividis", aspect="auto")
    axes.set_title(
        f" \nseed {run.seed}", fontsize=8
    )  # the empty line leaves room for the row's title
    axes.set_yticks(range(len(labels)), labels if named else [""] * len(labels), fontsize=6)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=4)  # type: ignore[call-arg]
    axes.tick_params(length=0, labelsize=6)
    axes.spines[:].set_visible(False)
    return image


def draw_rank_agreement(table: Table, task: str) -> Figure | None:
    """Mean rank correlation of runs with different seeds, between settings and within; for one setting, of every two seeds.

    None where there is nothing to compare.
    """
    from matplotlib.figure import Figure

    groups = ranked_groups(table, task)
    if len(groups) == 1:
        groups = [(f"seed {run.seed}", [run]) for run in groups[0][1]]
    if len(groups) < 2:
        return None
    matrix = agreement_matrix([runs for _, runs in groups])
    labels, count = [label for label, _ in groups], len(groups)
    figure = Figure(
        figsize=(max(5.5, 3.5 + 0.62 * count), 1.6 + 0.42 * count), layout="constrained"
    )
    axes = figure.subplots()
    image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu", aspect="auto")
    axes.set_yticks(range(count), labels, fontsize=8)
    axes.set_xticks(range(count), [str(1 + index) for index in range(count)], fontsize=8)
    axes.set_yticklabels([f"{label}   {1 + index}" for index, label in enumerate(labels)])
    for (row, column), value in np.ndenumerate(matrix):
        text = "-" if math.isnan(value) else f"{value:+.2f}"
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=8,
            color="#fefefe" if abs(value) > 0.65 else "#111111",
        )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label=f"mean rank correlation {RHO}")
    figure.suptitle(f"{brief(task, 30)}: do ranks fall alike under another seed?", fontsize=10)
    return figure
