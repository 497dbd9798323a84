"""How pictures look: a colour and a dash for each setting, panels, titles, legends."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

from dynarank.report.tables import Setting, Table
from dynarank.rounding import divide_up

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Dashes = str | tuple[int, tuple[int, ...]]
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F"]
"""The palette of Okabe and Ito, which colour-blind readers can tell apart, and a darker yellow."""
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
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
"""A measurement's mark, for those who see no colour."""
GREY = "#999999"
WIDTH = 4.8
"""Inches of a usual picture. On a phone its letters keep nine tenths of their size."""
PHONE_WIDTH = 4.2
"""Inches of what is drawn apart for a phone."""
STYLE = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
}
"""Names are shown as they are, dollars too; letters in an SVG or a PDF stay letters."""


def styled() -> AbstractContextManager[None]:
    """Return a context in which figures are drawn and saved as `STYLE` says."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def brief(name: str, most: int = 60) -> str:
    """Return a name as pictures have room for it."""
    return name if len(name) <= most else f"{name[: most - 3]}..."


class Look(NamedTuple):
    """How a setting is drawn."""

    colour: str
    dashes: Dashes
    marker: str
    label: str | None
    """The words of the legend; None for settings that are only background."""


def looks(table: Table, task: str) -> dict[Setting, Look]:
    """Return a look for each setting.

    Of more settings than there are colours, the best on this task have one; the rest are grey.
    """
    chosen = table.settings
    if len(chosen) > len(COLOURS):
        chosen = table.order(task)[: len(COLOURS)]
    by_setting = {}
    for setting in table.settings:
        if setting in chosen:
            index = chosen.index(setting)
            label = brief(table.label(setting))
            look = Look(COLOURS[index], DASHES[index], MARKERS[index], label)
        else:
            look = Look(GREY, "-", "", None)
        by_setting[setting] = look
    return by_setting


def panels(rows: int, legend: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels above each other, with room for `legend` entries below."""
    from matplotlib.figure import Figure

    height = 2.9 if rows == 1 else 1.9 * rows + 0.6
    # One entry more than there are colours: that of all the others.
    height += 0.2 * min(legend, len(COLOURS) + 1)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    column = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    for axes in column:
        plain_frame(axes)
        axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    return figure, column


def plain_frame(axes: Axes) -> None:
    """Take away the frame's upper and right line."""
    axes.spines[["top", "right"]].set_visible(False)


def whole_steps(axes: Axes) -> None:
    """Label the x axis as optimizer steps, in whole numbers with separators."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlim(left=0)


def titled(figure: Figure, axes: Axes, title: str, look_by_setting: dict[Setting, Look]) -> Figure:
    """Return the figure with a title, and a legend below."""
    figure.suptitle(title, fontsize=10)
    handles, labels = axes.get_legend_handles_labels()
    background = [look for look in look_by_setting.values() if look.label is None]
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
    """Draw a dotted line where ranks are frozen: only scores after it are at budget.

    There is none where runs freeze at different steps.
    """
    steps = set()
    for setting in table.settings:
        for run in table.cell(setting, task):
            # A single one may be the final ranks, at the run's last step (`read_run`).
            if len(run.prunings) > 1:
                steps.add(run.prunings[-1][0])
    if not steps or max(steps) > 1.02 * min(steps):
        return
    axes.axvline(max(steps), color=GREY, linestyle=":", linewidth=1, zorder=0)
    axes.annotate(
        "ranks frozen",
        (max(steps), 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 2),  # above the panel, where no curve is
        textcoords="offset points",
        horizontalalignment="center",
        fontsize=7,
        color="#666666",
    )


def grid_shape(count: int, columns: int) -> tuple[int, int]:
    """Return rows and columns of a grid for `count` panels, at most `columns` wide."""
    wide = min(columns, count)
    return divide_up(count, wide), wide


def hide_from(axes: Sequence[Axes], first: int) -> None:
    """Hide the panels from number `first` on, which have nothing to show."""
    for empty in axes[first:]:
        empty.set_visible(False)
