"""The picture of budget against quality: what each size of adapter scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import isotonic_regression

from dynarank.report.findings import number
from dynarank.report.plot_style import COLOURS, GREY, PHONE_WIDTH, brief, plain_frame
from dynarank.report.sizes import Point, sizes_and_scores, undominated
from dynarank.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = 0.17
"""Inches from one label to the next."""
LABELS_ON_A_PHONE = 12
NEWLINE = {True: "\n", False: " "}
"""What parts a title's sentences, on a phone and elsewhere."""
MOST_LABELS = 40
"""Of more settings than this, those on the stairs and the best of the rest have a label."""


def draw_budget_against_quality(table: Table, task: str, phone: bool = False) -> Figure | None:
    """Draw the mean score over the adapter parameters, a label beside each point.

    The stairs lead along the best score under any number of parameters. For a phone the points
    have numbers, and the labels stand below. Return None where no setting has a score.
    """
    from matplotlib.figure import Figure

    points = sizes_and_scores(table, task)
    if not points:
        return None
    best = undominated(points)
    rest = [point for point in points if point not in best]
    labelled = best + sorted(rest, key=lambda point: -point.score)
    labelled = labelled[: LABELS_ON_A_PHONE if phone else MOST_LABELS]
    size = 8.5, max(3.8, 1.4 + LINE * len(labelled))
    if phone:
        size = PHONE_WIDTH, 3.0 + LINE * len(labelled)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.step(
        [point.parameters for point in best],
        [point.score for point in best],
        where="post",
        color=COLOURS[0],
        linewidth=1.4,
        zorder=1,
    )
    axes.scatter(
        [point.parameters for point in rest],
        [point.score for point in rest],
        facecolors="none",
        edgecolors=GREY,
        zorder=2,
    )
    axes.scatter(
        [point.parameters for point in best],
        [point.score for point in best],
        color=COLOURS[0],
        marker="D",
        s=32,
        zorder=3,
    )
    axes.set_xlabel("adapter parameters")
    axes.set_ylabel(f"{brief(table.metrics[task], 40)} (mean over seeds)")
    _scale_parameters(axes, [point.parameters for point in points])
    _scale_scores(axes, [point.score for point in points])
    if phone:
        _number(axes, table, labelled)
    else:
        _label(axes, table, labelled, best)
    plain_frame(axes)
    title = f"{brief(task, 30)}: budget and quality;{NEWLINE[phone]}"
    title += "◆ is the best with so few parameters"
    if len(labelled) < len(points):
        title += f"{NEWLINE[phone]}({len(labelled)} of {len(points)} settings are named)"
    figure.suptitle(title, fontsize=10)
    return figure


def _number(axes: Axes, table: Table, points: Sequence[Point]) -> None:
    """Write a number beside each point, and below what each stands for."""
    lines = []
    for position, point in enumerate(points, start=1):
        place = (point.parameters, point.score)
        axes.annotate(str(position), place, xytext=(5, 4), textcoords="offset points", fontsize=9)
        numbers = f"{number(point.score)}, {short(point.parameters)}"
        lines.append(f"{position}   {brief(table.label(point.setting), 36)}  {numbers}")
    figure = axes.get_figure()
    assert figure is not None
    figure.supxlabel("\n".join(lines), fontsize=8, ha="left", x=0.02)


def _scale_parameters(axes: Axes, parameters: Sequence[float]) -> None:
    """Choose a logarithmic axis where sizes span it, and write numbers as they are."""
    from matplotlib.ticker import MaxNLocator

    axes.margins(0.08)
    positive = [size for size in parameters if size > 0]
    if positive and max(positive) > 5 * min(positive):
        _logarithmic(axes, positive, zero=len(positive) < len(parameters))
        return
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _scale_scores(axes: Axes, scores: Sequence[float]) -> None:
    """Do not zoom into differences that are nothing."""
    low, high = min(scores), max(scores)
    least = 0.02 * max(1e-9, abs(low), abs(high))
    middle = (high + low) / 2
    span = high - low
    if span < least:
        axes.set_ylim(middle - least, middle + least)
    # Else like scores are labelled by what they exceed a common number by.
    axes.yaxis.get_major_formatter().set_useOffset(False)  # type: ignore[attr-defined]


def _logarithmic(axes: Axes, positive: Sequence[float], zero: bool) -> None:
    """Tick powers of ten, and 2 and 5 between them where they are few.

    Zero, where it occurs, stands left of the smallest size.
    """
    low, high = min(positive), max(positive)
    first = int(np.floor(np.log10(low)))
    last = int(np.ceil(np.log10(high)))
    decades = range(first, last + 1)
    steps = (1, 2, 5) if len(decades) < 4 else (1,)
    ticks = []
    for decade in decades:
        for step in steps:
            tick = step * 10.0**decade
            if low / 1.1 <= tick <= high * 1.1:
                ticks.append(tick)
    if zero:
        # Linear up to the smallest size, so that zero has a place.
        axes.set_xscale("symlog", linthresh=low, linscale=0.5)
    else:
        axes.set_xscale("log")
    axes.set_xticks([0.0, *ticks] if zero else ticks)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: short(value))


def short(parameters: float) -> str:
    """Return a number of parameters in few signs: 86.4 k, 1.33 M."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(parameters) >= size:
            return f"{parameters / size:.3g}{unit}"
    return f"{parameters:.3g}"


def _label(axes: Axes, table: Table, points: Sequence[Point], best: Sequence[Point]) -> None:
    """Write labels in a column at the right, by height, each with a thin line to its point."""
    ordered = sorted(points, key=lambda point: (point.score, -point.parameters))
    low, high = axes.get_ylim()
    wanted = [(point.score - low) / (high - low) for point in ordered]
    figure = axes.get_figure(root=True)
    assert figure is not None
    # About 1.2 inches of the height are not the axes'.
    gap = LINE / (figure.get_figheight() - 1.2)
    line = {
        "arrowstyle": "-",
        "relpos": (0, 0.5),
        "color": GREY,
        "linewidth": 0.5,
        "shrinkA": 0,
        "shrinkB": 3,
    }
    for point, height in zip(ordered, spread(wanted, gap), strict=True):
        chosen = point in best
        label = brief(table.label(point.setting))
        numbers = f"{number(point.score)}, {short(point.parameters)}"
        axes.annotate(
            f"{'◆ ' if chosen else ''}{label}  {numbers}",
            (point.parameters, point.score),
            xytext=(1.06, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color="#000000" if chosen else "#666666",
            # The labels stand outside of the axes, where they would be left out.
            annotation_clip=False,
            arrowprops=line,
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Return ascending places at least `gap` apart, each as near as can be to those wanted.

    Nearness is in the least-squares sense: without the gaps, that is an isotonic regression.
    """
    # With its share of the gaps taken off, a place must only be no lower than the one before.
    steps = np.arange(len(wanted)) * gap
    level = isotonic_regression(np.asarray(wanted) - steps).x
    return [float(place) for place in level + steps]
