"""A forest plot of a bench: each arm less the baseline, with both intervals, a panel a budget."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from dynarank.report.bench_pairs import Difference
from dynarank.report.bench_sections import a_matrix
from dynarank.report.plot_style import GREY, PHONE_WIDTH, WIDTH, plain_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, BLUE = "#000000", "#0072B2"
"""Colours that a page exchanges for its own in the dark."""
ROW_HEIGHT = 0.24
MOST_REACH = 3.0
"""The axis goes as far as the widest interval, but no further than so many times the median's."""
CAPTION = (
    "The mean difference of scores, with the 95 % bootstrap interval over pairs (thick) and over "
    "tasks (thin). Filled: better or worse after Holm's correction; open: nothing shown. "
    "A triangle with a number stands for a mean beyond the axis."
)


def draw_forest(differences: Sequence[Difference], phone: bool = False) -> Figure | None:
    """Draw the differences of every budget; None where there are none of two pairs or more."""
    from matplotlib.figure import Figure

    shown = [one for one in differences if one.scores.n > 1]
    budgets = sorted({one.budget for one in shown})
    if not budgets:
        return None
    panels = [_of_budget(shown, budget) for budget in budgets]
    sizes = [len(panel) + 1.5 for panel in panels]
    height = ROW_HEIGHT * sum(sizes) + 0.35 * len(panels) + 0.4
    size = (PHONE_WIDTH if phone else 1.3 * WIDTH, height)
    figure = Figure(figsize=size, layout="constrained")
    column = figure.subplots(
        len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": sizes}
    )[:, 0]
    edge = _edge(shown)
    for axes, budget, panel in zip(column, budgets, panels, strict=True):
        _draw_panel(axes, budget, panel, edge)
    column[-1].set_xlabel(f"score less that of {shown[0].against}")
    return figure


def _of_budget(differences: Sequence[Difference], budget: float) -> list[Difference]:
    """Return the differences under a budget, from the worst to the best."""
    of_budget = [one for one in differences if one.budget == budget]
    return sorted(of_budget, key=lambda one: one.scores.difference)


def _edge(shown: Sequence[Difference]) -> float:
    """Return how far the axis goes to either side: an arm that fails would flatten all others."""
    reaches = [max(abs(one.scores.low), abs(one.scores.high)) for one in shown]
    return min(max(reaches), MOST_REACH * median(reaches)) or 1.0


def _draw_panel(axes: Axes, budget: float, panel: Sequence[Difference], edge: float) -> None:
    plain_frame(axes)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    for row, one in enumerate(panel):
        scores = one.scores
        # NaN, of too few tasks for an interval, draws nothing.
        axes.plot([one.task_low, one.task_high], [row, row], color=BLUE, linewidth=1)
        axes.plot([scores.low, scores.high], [row, row], color=BLUE, linewidth=3.5)
        filled = BLUE if one.verdict else "#ffffff"
        inside = max(-edge, min(edge, scores.difference))
        marker = "o"
        if inside != scores.difference:
            marker = ">" if inside > 0 else "<"
            text, side = f"{scores.difference:+.3f}", "right" if inside > 0 else "left"
            axes.text(0.97 * inside, row + 0.2, text, fontsize=7, ha=side, va="bottom")
        axes.plot([inside], [row], marker, color=BLUE, markerfacecolor=filled, markersize=6)
    axes.set_xlim(-1.04 * edge, 1.04 * edge)
    axes.set_yticks(range(len(panel)), [one.arm for one in panel], fontsize=8)
    axes.set_ylim(-0.7, len(panel) - 0.3)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    tasks: set[str] = set()
    for one in panel:
        tasks.update(one.tasks)
    pairs = max(one.scores.n for one in panel)
    title = f"{a_matrix(budget)} ({len(tasks)} tasks, up to {pairs} pairs)"
    axes.set_title(title, fontsize=9, loc="left")
