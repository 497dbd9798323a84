"""The bench as one HTML page: the answer first, a picture, and every table. It fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from dynarank.report.bench_pairs import differences
from dynarank.report.bench_sections import Section
from dynarank.report.bench_tables import sections
from dynarank.report.pictures import Picture, inline_svg
from dynarank.report.plot_bench import CAPTION, draw_forest
from dynarank.report.plot_style import styled
from dynarank.sweeps.bench import Cell

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def bench_page(cells: Sequence[Cell]) -> str:
    """Return the page's HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dynarank.report", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["marked"] = marked
    found = sections(cells)
    picture = forest_picture(cells)
    assets = resources.files("dynarank.report").joinpath("assets")
    return environment.get_template("bench.html").render(
        policy=POLICY,
        css=Markup(assets.joinpath("page.css").read_text(encoding="utf-8")),
        sentences=sentences(found[0].answer),
        sections=[_shown(section) for section in found],
        picture=None if picture is None else Markup(inline_svg(picture.svg)),
        caption=CAPTION,
    )


def forest_picture(cells: Sequence[Cell]) -> Picture | None:
    """Return the picture of the judged differences from the baseline; None where there are none.

    Few pairs of one task would stand beside many of six, and their interval looks narrower.
    """
    judged = [one for one in differences(cells) if one.judged]
    with styled():
        figure = draw_forest(judged)
    return None if figure is None else Picture("bench", "all", CAPTION, figure)


def write_page(path: Path, cells: Sequence[Cell]) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(bench_page(cells), encoding="utf-8")


def sentences(text: str) -> list[str]:
    """Return the sentences of an answer. A point inside a number ends none."""
    return re.split(r"(?<=\.) (?=[A-Z])", text)


def marked(text: str) -> Markup:
    """Return text as HTML, where `names` are code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _shown(section: Section) -> dict[str, object]:
    # For the links at the top of the page.
    short = re.sub(r"^(\d)\..*", r"Question \1", section.title)
    return {
        "title": section.title,
        "short": short if len(short) < 16 else short.split(" ")[0],
        "answer": section.answer,
        "grids": section.grids,
    }
