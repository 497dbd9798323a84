"""All pictures of a report, and how they are saved: as PNG and SVG files, and as SVG that takes a page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dynarank.report.runs import Run
from dynarank.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "axes.titlesize": 10,
    "axes.labelsize": 9,
}
"""Names are shown as they are, dollars too; letters in an SVG stay letters."""


@dataclass(frozen=True)
class Picture:
    """A figure, and what it shows."""

    name: str
    """Of its files."""
    task: str
    caption: str
    figure: Figure

    @cached_property
    def svg(self) -> str:
        """The figure as an SVG file's text."""
        text = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        with styled():
            self.figure.savefig(text, format="svg", metadata=metadata)
        return text.getvalue()


def styled() -> AbstractContextManager[None]:
    """Within it figures are drawn and saved as `STYLE` says."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def draw_pictures(table: Table, runs: Sequence[Run]) -> list[Picture]:
    """What there is to show, task by task. For one run: its curves and its allocation."""
    with styled():
        return [picture for task in table.tasks for picture in _of_task(table, task, runs)]


def _of_task(table: Table, task: str, runs: Sequence[Run]) -> list[Picture]:
    from dynarank.report.plot_quality import draw_budget_against_quality
    from dynarank.report.plot_ranks import draw_rank_agreement, draw_rank_maps
    from dynarank.report.plots import (
        draw_allocation,
        draw_budgets,
        draw_curves,
        draw_losses,
        draw_score_spread,
    )

    found: dict[str, tuple[Figure | None, str]] = {}
    if len(table.settings) > 1:
        found["budget_quality"] = (
            draw_budget_against_quality(table, task),
            "What each size of adapter scores.",
        )
    found["curves"] = (
        draw_curves(table, task),
        "Validation score: mean over seeds, and the range that they span.",
    )
    found["loss"] = (
        draw_losses(table, task),
        "Loss: mean over seeds, and the range that they span.",
    )
    if len(runs) == 1:
        ranked = "budget/scheduled" in runs[0].history
        found["allocation"] = (
            draw_allocation(runs[0]) if ranked else None,
            "Budget, and the scores of components.",
        )
    else:
        found["budget"] = (
            draw_budgets(table, task),
            "The scheduled budget, and what was not zero at each step.",
        )
        found["scores"] = (
            draw_score_spread(table, task),
            "How the scores of components spread while training.",
        )
        found["rank_maps"] = (
            draw_rank_maps(table, task),
            "Ranks under other seeds and settings, side by side.",
        )
        found["rank_agreement"] = (
            draw_rank_agreement(table, task),
            "Rank correlation between settings and between seeds.",
        )
    return [
        Picture(
            name if name == "allocation" else f"{name}_{file_name(task)}", task, caption, figure
        )
        for name, (figure, caption) in found.items()
        if figure is not None
    ]


def file_name(task: str) -> str:
    """A task's name as part of a file's: nothing in it leaves the folder."""
    return re.sub(r"[^\w.-]", "_", task)


def save(picture: Picture, folder: Path) -> None:
    """NAME.png and NAME.svg."""
    with styled():
        picture.figure.savefig(folder / f"{picture.name}.png", dpi=150)
    (folder / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")


def inline_svg(picture: Picture) -> str:
    """The picture as an <svg> to stand in a page: black takes the page's ink, white its paper, and no style leaks out."""
    svg = picture.svg[picture.svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    taken_colours = {
        "#000000": "currentColor",
        "#ffffff": "none",
        "#666666": "var(--quiet)",
        "#0072b2": "var(--dot)",
    }
    for drawn, taken in taken_colours.items():
        svg = svg.replace(f": {drawn}", f": {taken}")
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*pt"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*pt"', r"\1", svg, count=1),
        count=1,
    )
