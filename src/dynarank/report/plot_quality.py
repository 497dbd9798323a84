"""The picture of budget against quality: what each size of adapter buys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dynarank.report.findings import Point, number, sizes_and_scores, undominated
from dynarank.report.plots import COLOURS, GREY, brief
from dynarank.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = 0.17
"""Inches from one label to the next."""


def draw_budget_against_quality(table: Table, task: str) -> Figure | None:
    """Mean score over adapter parameters, a label beside each point; the stairs lead along the best under any number.

    None where no setting has a score.
    """
    from matplotlib.figure import Figure

    points = sizes_and_scores(table, task)
    if not points:
        return None
    best = undominated(points)
    figure = Figure(figsize=(8.5, max(3.8, 1.4 + LINE * len(points))), layout="constrained")
    axes = figure.subplots()
    axes.step(
        [p.parameters for p in best],
        [p.score for p in best],
        where="post",
        color=COLOURS[0],
        linewidth=1.4,
        zorder=1,
    )
    rest = [point for point in points if point not in best]
    axes.scatter(
        [p.parameters for p in rest],
        [p.score for p in rest],
        facecolors="none",
        edgecolors=GREY,
        zorder=2,
    )
    axes.scatter(
        [p.parameters for p in best],
        [p.score for p in best],
        color=COLOURS[0],
        marker="D",
        s=32,
        zorder=3,
    )
    axes.set(xlabel="adapter parameters", ylabel=f"{table.metrics[task]} (mean over seeds)")
    _plain_scales(axes, [p.parameters for p in points], [p.score for p in points])
    _label(axes, table, points, best)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{brief(task, 30)}: budget and quality; ◆ is the best with so few parameters", fontsize=11
    )
    return figure


def _plain_scales(axes: Axes, parameters: Sequence[float], scores: Sequence[float]) -> None:
    """Numbers as they are; a logarithmic axis where sizes span it; no zoom into differences that are nothing."""
    from matplotlib.ticker import MaxNLocator

    axes.margins(0.08)
    positive = [size for size in parameters if size > 0]
    if positive and max(positive) > 5 * min(positive):
        _logarithmic(axes, positive, zero=len(positive) < len(parameters))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    least = 0.02 * max(1e-9, *(abs(score) for score in scores))
    middle, span = (max(scores) + min(scores)) / 2, max(scores) - min(scores)
    if span < least:
        axes.set_ylim(middle - least, middle + least)
    axes.yaxis.get_major_formatter().set_useOffset(False)  # type: ignore[attr-defined]


def _logarithmic(axes: Axes, positive: Sequence[float], zero: bool) -> None:
    """Powers of ten, with 2 and 5 between them where they are few; zero, where it occurs, left of the smallest."""
    decades = range(
        int(np.floor(np.log10(min(positive)))), 1 + int(np.ceil(np.log10(max(positive))))
    )
    ticks = [
        step * 10.0**decade
        for decade in decades
        for step in ((1, 2, 5) if len(decades) < 4 else (1,))
    ]
    ticks = [tick for tick in ticks if min(positive) / 1.1 <= tick <= max(positive) * 1.1]
    if zero:
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
    else:
        axes.set_xscale("log")
    axes.set_xticks([0.0, *ticks] if zero else ticks)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: short(value))


def short(parameters: float) -> str:
    """86.4 k, 1.33 M."""
    for size, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(parameters) >= size:
            return f"{parameters / size:.3g}{name}"
    return f"{parameters:.3g}"


def _label(axes: Axes, table: Table, points: Sequence[Point], best: Sequence[Point]) -> None:
    """Labels in a column at the right, in the order of the points' heights, each with a thin line to its point."""
    ordered = sorted(points, key=lambda point: (point.score, -point.parameters))
    low, high = axes.get_ylim()
    gap = LINE / (axes.get_figure().get_figheight() - 1.2)  # type: ignore[union-attr]
    heights = spread([(point.score - low) / (high - low) for point in ordered], gap)
    for point, height in zip(ordered, heights, strict=True):
        chosen = point in best
        axes.annotate(
            f"{'◆ ' if chosen else ''}{brief(table.label(point.setting))}  {number(point.score)}, {short(point.parameters)}",
            (point.parameters, point.score), xytext=(1.06, height), textcoords="axes fraction", va="center", fontsize=8,
            color="#000000" if chosen else "#666666", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending places at least `gap` apart, each as near as can be to those wanted, in the least-squares sense."""
    steps = np.arange(len(wanted)) * gap
    blocks: list[list[float]] = []  # runs of touching places, as (sum, number)
    for value in np.asarray(wanted) - steps:
        blocks.append([float(value), 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    level = np.repeat(
        [total / count for total, count in blocks], [int(count) for _, count in blocks]
    )
    return [float(value) for value in level + steps]
