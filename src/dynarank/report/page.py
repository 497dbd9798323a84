"""report.html: one page that needs nothing else, from templates, styles and scripts in `assets/`.

All text of runs is escaped by Jinja. The page's own policy lets nothing be fetched, and lets no
script run but its own, by its hash. So even a name that slipped through could not execute.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from dynarank.report.comparisons import Verdict, standings
from dynarank.report.findings import headline, number
from dynarank.report.markdown import models
from dynarank.report.page_cards import cards
from dynarank.report.page_data import embedded
from dynarank.report.page_rows import (
    agreement_rows,
    comparison_rows,
    folder_name,
    run_row,
    score_rows,
)
from dynarank.report.pictures import Picture, inline_svg
from dynarank.report.runs import LeftOut, Run
from dynarank.report.tables import Setting, Table

SCRIPTS = ("page.js", "tables.js", "ranks.js", "runs.js")
SIGNS = {
    Verdict.ALONE: "·",
    Verdict.ONE_SEED: "?",
    Verdict.MISSING_SCORE: "?",
    Verdict.NOT_SIGNIFICANT: "≈",
    Verdict.ABOVE_SOME: "△",
    Verdict.ABOVE_ALL: "▲",
    Verdict.HIGHER: "▲",
    Verdict.LOWER: "▼",
}
"""A sign beside the words of each verdict: nothing is said by colour alone."""


@dataclass(frozen=True)
class Report:
    """What a page shows."""

    title: str
    places: Sequence[Path]
    """The folders asked for; runs are named by their path below them."""
    tables: Sequence[Table]
    """The scores reported, and the other choice: at budget and of the last epoch, or reversed."""
    reference: Setting
    runs: Sequence[Run]
    left_out: Sequence[LeftOut]
    pictures: Sequence[Picture]
    under: int | None = None
    """The most adapter parameters that the page asks for to begin with."""


def page(report: Report) -> str:
    """Return the page's HTML."""
    table = report.tables[0]
    task_cards = cards(report.tables)
    sizes: list[float] = []
    for card in task_cards:
        sizes += [point.parameters for point in card.sizes]
    scripts = "\n".join(_asset(name) for name in SCRIPTS)
    compared = []
    for one in report.tables:
        compared += comparison_rows(one, report.reference)
    return (
        _environment(table)
        .get_template("page.html")
        .render(
            report=report,
            table=table,
            policy=_policy(scripts),
            css=Markup(_asset("page.css")),
            scripts=Markup(scripts),
            drawn=_drawn(report.pictures),
            cards=task_cards,
            largest=max(sizes, default=0),
            headline=headline(table, standings(table)),
            models=models(table),
            rows=score_rows(report.tables),
            compared=compared,
            agreements=agreement_rows(table),
            runs=[run_row(table, run, report.places) for run in report.runs],
            left_out=[(folder_name(one.folder, report.places), one) for one in report.left_out],
            data=embedded(table, report.runs),
        )
    )


def _drawn(pictures: Sequence[Picture]) -> list[tuple[Picture, Markup, Markup | None]]:
    """Return each picture with its <svg>, and that for a phone where it has one of its own."""
    drawn = []
    for picture in pictures:
        narrow = picture.phone_svg
        phone = None if narrow is None else Markup(inline_svg(narrow))
        drawn.append((picture, Markup(inline_svg(picture.svg)), phone))
    return drawn


def _environment(table: Table) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dynarank.report", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Jinja would sort the keys, which have an order here. NaN is no JSON, and a browser refuses it.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["number"] = number
    environment.filters["label"] = table.label
    environment.filters["sign"] = lambda verdict: SIGNS[verdict]
    return environment


def _policy(scripts: str) -> str:
    """Return the page's Content-Security-Policy: only these very scripts may run."""
    # Styles are let in without a hash: pictures have theirs in attributes, which no hash covers.
    sha256 = hashlib.sha256(scripts.encode()).digest()
    digest = base64.b64encode(sha256).decode()
    return (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'"
    )


def _asset(name: str) -> str:
    return resources.files("dynarank.report").joinpath("assets", name).read_text(encoding="utf-8")
