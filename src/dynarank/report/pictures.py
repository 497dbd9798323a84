"""All pictures of a report, and how they are saved: PNG, SVG and PDF files, and SVG in a page."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dynarank.report.plot_style import styled
from dynarank.report.runs import Progress, Run
from dynarank.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOR_PAPERS = ("rank_budgets", "rank_maps")
"""Pictures that are saved as PDF too."""
WIDTHS = {"rank_budgets": "broad", "rank_agreement": "narrow"}
"""Pictures that take another part of the page's width than half."""
PNG_DPI = 150
LONGEST_NAME = 80
"""Bytes of a task's name in the name of a picture."""
MOST_PICTURED_TASKS = 40
"""Tasks beyond this number have no pictures."""


@dataclass(frozen=True)
class Picture:
    """A figure, and what it shows."""

    kind: str
    task: str
    caption: str
    figure: Figure = field(repr=False)
    phone: Figure | None = field(default=None, repr=False)
    """The same drawn for a phone, where the figure is too wide for one."""
    of_one_run: bool = False

    @property
    def name(self) -> str:
        """The name of its files."""
        if self.of_one_run and self.kind == "allocation":
            return self.kind
        return f"{self.kind}_{file_name(self.task)}"

    @property
    def width(self) -> str:
        """How much of the page's width it takes: `broad`, `usual` or `narrow`."""
        return WIDTHS.get(self.kind, "usual")

    @cached_property
    def svg(self) -> str:
        """The figure as an SVG file's text."""
        return _as_svg(self.figure)

    @property
    def phone_svg(self) -> str | None:
        """What is drawn for a phone, as an SVG's text."""
        return None if self.phone is None else _as_svg(self.phone)

    def save(self, folder: Path) -> None:
        """Write NAME.png and NAME.svg, and NAME.pdf of pictures that papers take.

        The canvases are asked directly: `savefig` draws a figure twice, for its layout.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_pdf import FigureCanvasPdf

        _fix_layout(self.figure)
        with styled():
            # The canvas takes the figure's own dots an inch; savefig() would set them.
            dots = self.figure.dpi
            self.figure.dpi = PNG_DPI
            FigureCanvasAgg(self.figure).print_png(folder / f"{self.name}.png")
            self.figure.dpi = dots
            if self.kind in FOR_PAPERS:
                # Without dates and versions, equal pictures are equal files.
                metadata = {"CreationDate": None, "Creator": None, "Producer": None}
                FigureCanvasPdf(self.figure).print_pdf(
                    folder / f"{self.name}.pdf", metadata=metadata
                )
        (folder / f"{self.name}.svg").write_text(self.svg, encoding="utf-8")


def _as_svg(figure: Figure) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    _fix_layout(figure)
    with styled():
        FigureCanvasSVG(figure).print_svg(text, metadata=metadata)
    return text.getvalue()


def _fix_layout(figure: Figure) -> None:
    """Lay a figure out once: to do so again for every format takes as long as to draw it."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    _escape_surrogates(figure)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        with styled():
            engine.set(w_pad=0.08, h_pad=0.06)  # Formats differ a little in their text's size.
            figure.draw_without_rendering()
        figure.set_layout_engine("none")


def _escape_surrogates(figure: Figure) -> None:
    """Escape half surrogate pairs, which JSON can hold in a name, and no font can draw."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        shown = text.get_text()
        drawable = shown.encode("utf-8", "backslashreplace").decode()
        if drawable != shown:
            text.set_text(drawable)


def draw_pictures(
    table: Table, runs: Sequence[Run], progress: Progress | None = None
) -> Iterator[Picture]:
    """Yield what there is to show, task by task. Of one run: its curves and its allocation."""
    tasks = table.tasks[:MOST_PICTURED_TASKS]
    for number, task in enumerate(tasks, start=1):
        with styled():
            pictures = list(_pictures_of_task(table, task, runs))
        yield from pictures
        if progress is not None:
            progress(number, len(tasks))


def _pictures_of_task(table: Table, task: str, runs: Sequence[Run]) -> Iterator[Picture]:
    single = len(runs) == 1
    figures = _one_run(table, task, runs[0]) if single else _several_runs(table, task)
    narrow = {} if single else _for_phones()
    for kind, figure, caption in figures:
        if figure is not None:
            phone = narrow[kind](table, task, phone=True) if kind in narrow else None
            yield Picture(kind, task, caption, figure, phone, of_one_run=single)


def _for_phones() -> dict[str, Callable[..., Figure | None]]:
    """Return what draws the pictures that are too wide for a phone, by kind."""
    from dynarank.report.plot_budgets import draw_rank_budgets
    from dynarank.report.plot_quality import draw_budget_against_quality
    from dynarank.report.plot_ranks import draw_rank_maps

    return {
        "rank_budgets": draw_rank_budgets,
        "rank_maps": draw_rank_maps,
        "budget_quality": draw_budget_against_quality,
    }


def _one_run(table: Table, task: str, run: Run) -> Iterator[tuple[str, Figure | None, str]]:
    from dynarank.report.plot_curves import draw_allocation, draw_curves, draw_losses

    yield "curves", draw_curves(table, task), "Validation score; a marker at each measurement."
    yield "loss", draw_losses(table, task), "Loss in training and in validation."
    yield "allocation", draw_allocation(run), "Budget, and the scores of components."


def _several_runs(table: Table, task: str) -> Iterator[tuple[str, Figure | None, str]]:
    from dynarank.report.plot_budgets import draw_rank_budgets
    from dynarank.report.plot_curves import (
        draw_budgets,
        draw_curves,
        draw_losses,
        draw_score_spread,
    )
    from dynarank.report.plot_quality import draw_budget_against_quality
    from dynarank.report.plot_ranks import draw_rank_agreement, draw_rank_maps

    if len(table.settings) > 1:
        figure = draw_budget_against_quality(table, task)
        yield "budget_quality", figure, "What each size of adapter scores."
    caption = "Validation score: mean over seeds with a marker at each measurement, and the range."
    yield "curves", draw_curves(table, task), caption
    caption = "Where the ranks go under each budget: mean rank of each matrix over seeds."
    yield "rank_budgets", draw_rank_budgets(table, task), caption
    yield "loss", draw_losses(table, task), "Loss: mean over seeds, and the range."
    caption = "The scheduled budget, and the components that were not zero at each step."
    yield "budget", draw_budgets(table, task), caption
    caption = "How the scores of components spread while training."
    yield "scores", draw_score_spread(table, task), caption
    caption = "Ranks under other seeds and settings, side by side."
    yield "rank_maps", draw_rank_maps(table, task), caption
    caption = "Rank correlation between settings and between seeds."
    yield "rank_agreement", draw_rank_agreement(table, task), caption


def file_name(task: str) -> str:
    """Return a task's name as part of a file's name, which never leaves the folder.

    A name that had to be changed ends in a digest, so that `a/b` and `a_b` stay apart.
    """
    plain = re.sub(r"[^\w.-]", "_", task)
    # File systems count a name's bytes, and a cut may fall inside a sign of several.
    short = plain.encode()[:LONGEST_NAME].decode("utf-8", "ignore")
    if short == task:
        return task
    digest = hashlib.sha256(task.encode("utf-8", "backslashreplace")).hexdigest()
    return f"{short}-{digest[:6]}"


def inline_svg(picture_svg: str) -> str:
    """Return a picture as an <svg> for a page.

    Black takes the colour of the page's text, white that of its ground, and no style leaks out.
    """
    svg = picture_svg[picture_svg.index("<svg") :]
    for element in ("style", "metadata"):
        pattern = rf"<{element}.*?</{element}>"
        svg = re.sub(pattern, "", svg, count=1, flags=re.DOTALL)
    # matplotlib writes colours in small letters, as `fill: #0072b2` in an attribute `style`.
    page_colours = {
        "#000000": "currentColor",
        "#ffffff": "none",
        "#666666": "var(--quiet)",
        "#0072b2": "var(--dot)",
    }
    for drawn, shown in page_colours.items():
        svg = svg.replace(f": {drawn}", f": {shown}")
    # Without a size of its own it takes the width that the page gives it.
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*pt"', r"\1", svg, count=1)
    return svg
