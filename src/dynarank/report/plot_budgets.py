"""The paper's Figure 2: where the ranks go under each budget, mean over seeds.

One row of panels, a panel a budget. Ranks are absolute: the colour of a panel runs from zero to
the largest mean rank under that budget, and numbers stand in the cells where they fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynarank.report.plot_style import PHONE_WIDTH, brief
from dynarank.report.runs import Run
from dynarank.report.tables import Setting, Table
from dynarank.training.rank_map import rank_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

BUDGET_KEYS = ("budget.target", "budget.init")
"""Settings that differ between the panels of one figure."""
MOST_PANELS = 8
CELL_WIDTH, CELL_HEIGHT = 0.27, 0.26
"""Inches of a cell that has room for its number."""
MOST_LAYERS_WITH_NUMBERS = 24
MOST_LAYERS_ON_A_PHONE = 12
SMALLEST_WIDTH = 1.6
"""Inches of a panel at least, so that its title fits."""


def draw_rank_budgets(table: Table, task: str, phone: bool = False) -> Figure | None:
    """Draw the mean rank of each matrix under each budget, for the best setting that has budgets.

    For a phone the panels stand below each other. Return None where no setting has ranks that
    differ between matrices.
    """
    from matplotlib.figure import Figure

    chosen = _panels(table, task)
    if not chosen:
        return None
    name, groups = chosen
    names, first = mean_ranks(groups[0][1])
    layers, matrices = first.shape[1], len(names)
    numbered = layers <= MOST_LAYERS_WITH_NUMBERS
    cell_width = CELL_WIDTH if numbered else 0.1
    panel_width = max(SMALLEST_WIDTH, min(12.0, cell_width * layers))
    panel_height = 1.2 + min(30.0, CELL_HEIGHT * matrices)
    width, height = 1.5 + (0.25 + panel_width) * len(groups), 1.0 + panel_height
    if phone:
        width, height = PHONE_WIDTH, 0.6 + panel_height * len(groups)
        numbered = layers <= MOST_LAYERS_ON_A_PHONE
    figure = Figure(figsize=(min(60.0, width), min(60.0, height)), layout="constrained")
    shape = (len(groups), 1) if phone else (1, len(groups))
    row = figure.subplots(*shape, squeeze=False).ravel()
    for position, (axes, (budget, runs)) in enumerate(zip(row, groups, strict=True)):
        image = _panel(axes, runs, named=phone or position == 0, numbered=numbered)
        bar = figure.colorbar(image, ax=axes, location="bottom", aspect=30)
        bar.set_label("mean rank", fontsize=8)
        bar.ax.tick_params(labelsize=7)
        seeds = f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
        axes.set_title(f"budget {budget} ({seeds})", fontsize=9)
    title = f"{brief(task, 30)}: ranks by budget, mean over seeds"
    figure.suptitle(title + (name.replace("; ", "\n") if phone else name), fontsize=10)
    return figure


def _panels(table: Table, task: str) -> tuple[str, list[tuple[Any, list[Run]]]] | None:
    """Return the panels' budgets and runs, and what the settings have in common, as a title.

    Of the settings that differ in their budgets alone, those with the most budgets are taken; of
    several such families, the one that holds the best setting.
    """
    families: dict[Setting, dict[Any, list[Run]]] = {}
    for setting in table.order(task):
        runs = [run for run in table.cell(setting, task) if len(set(run.ranks.values())) > 1]
        layouts = {tuple(run.ranks) for run in runs}
        if len(layouts) != 1:
            continue
        budget = runs[0].settings.get("budget.target", runs[0].results.get("budget_target"))
        # Of settings that differ in their start alone, the best comes first, and stays.
        families.setdefault(_without_budget(table, setting), {}).setdefault(budget, runs)
    if not families:
        return None
    family = max(families, key=lambda name: len(families[name]))  # The first of equals.
    groups = sorted(families[family].items(), key=lambda group: _as_number(group[0]))
    words = []
    kept = [key for key in table.keys if key not in BUDGET_KEYS]
    for key, value in zip(kept, family, strict=True):
        words.append(f"{key.removesuffix('.name')}={value}")
    name = f"; {brief(', '.join(words))}" if words else ""
    return name, groups[:MOST_PANELS]


def _without_budget(table: Table, setting: Setting) -> Setting:
    pairs = zip(table.keys, setting, strict=True)
    return tuple(value for key, value in pairs if key not in BUDGET_KEYS)


def _as_number(budget: Any) -> float:
    return float(budget) if isinstance(budget, int | float) else 0.0


def mean_ranks(runs: Sequence[Run]) -> tuple[list[str], np.ndarray]:
    """Return the matrices' names and the mean ranks over runs, (matrices, layers)."""
    grids = [rank_grid(run.ranks) for run in runs]
    return grids[0][0], np.mean([values for _, values in grids], axis=0)


def _panel(axes: Axes, runs: Sequence[Run], named: bool, numbered: bool) -> AxesImage:
    names, values = mean_ranks(runs)
    largest = max(1.0, float(np.nanmax(values)))
    image = axes.imshow(values, vmin=0, vmax=largest, cmap="cividis", aspect="auto")
    labels = names if named else [""] * len(names)
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    axes.tick_params(length=0, labelsize=7)
    axes.set_xlabel("layer", fontsize=8)
    axes.spines[:].set_visible(False)
    if not numbered:
        return image
    for (row, column), rank in np.ndenumerate(values):
        if np.isnan(rank):
            continue
        # Black and white themselves would become the page's colours (`inline_svg`).
        # cividis runs from dark blue to light yellow.
        colour = "#111111" if rank > 0.6 * largest else "#fefefe"
        # From 9.95 on, a decimal would make a fourth sign, for which a cell has no room.
        text = f"{rank:.0f}" if rank >= 9.95 or rank == int(rank) else f"{rank:.1f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
    return image
