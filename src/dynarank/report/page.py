"""report.html: one page that needs nothing else, from templates, styles and scripts in `assets/`.

All text of runs is escaped by Jinja. The page's own policy lets nothing be fetched, and lets no script run but its own, by
its hash, so that even a name that slipped through could not execute.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dynarank.report.agreement import rank_agreement
from dynarank.report.findings import (
    Standing,
    headline,
    in_short,
    number,
    sentence,
    sizes_and_scores,
    standings,
    without_mean,
)
from dynarank.report.page_data import embedded
from dynarank.report.pictures import Picture, inline_svg
from dynarank.report.runs import LeftOut, Run
from dynarank.report.statistics import chance_correlation
from dynarank.report.tables import Difference, Setting, Table, differences

SCRIPTS = ("page.js", "tables.js", "ranks.js", "runs.js")
VERDICTS = {
    "alone": ("·", "one setting"),
    "one seed": ("?", "one seed tells nothing"),
    "not told apart": ("≈", "not told apart"),
    "in part": ("△", "told apart from some"),
    "told apart": ("▲", "told apart from all"),
    "higher": ("▲", "higher"),
    "lower": ("▼", "lower"),
}
"""A sign and words for each: nothing is said by colour alone."""


@dataclass(frozen=True)
class Report:
    """What a page shows."""

    title: str
    places: Sequence[Path]
    """Below which run folders are named."""
    tables: Sequence[Table]
    """The scores reported, and those of the other choice: at budget, of the last epoch."""
    reference: Setting
    runs: Sequence[Run]
    left_out: Sequence[LeftOut]
    pictures: Sequence[Picture]
    under: int | None = None
    """Adapter parameters at most, to begin with."""


def page(report: Report) -> str:
    """The HTML."""
    scripts = "\n".join(_asset(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(scripts.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dynarank.report", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters.update(
        number=number,
        label=report.tables[0].label,
        verdict=lambda name: VERDICTS.get(name, ("?", name)),
    )
    return environment.get_template("page.html").render(
        report=report,
        table=report.tables[0],
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'",
        css=Markup(_asset("page.css")),
        scripts=Markup(scripts),
        drawn=[(picture, Markup(inline_svg(picture))) for picture in report.pictures],
        cards=(cards := _cards(report)),
        largest=max((point.parameters for card in cards for point in card["sizes"]), default=0),
        headline=headline(report.tables[0], standings(report.tables[0])),
        rows=[_row(report, setting) for setting in report.tables[0].settings],
        compared=[
            line for table in report.tables for line in _differences(table, report.reference)
        ],
        agreements=_agreements(report.tables[0]),
        best=[_highest(report.tables, task) for task in report.tables[0].tasks],
        runs=[_run(report, run) for run in report.runs],
        left_out=[(shown(one.folder, report.places), one) for one in report.left_out],
        data=embedded(report.tables[0], report.runs),
    )


def _asset(name: str) -> str:
    return resources.files("dynarank.report").joinpath("assets", name).read_text(encoding="utf-8")


def shown(folder: Path, places: Sequence[Path]) -> str:
    """A run's folder, below the one that was asked for."""
    for place in places:
        if folder.is_relative_to(place):
            return str(folder.relative_to(place)) if folder != place else folder.resolve().name
    return os.path.relpath(folder)


def which(table: Table) -> str:
    """The score's name."""
    return "last epoch" if table.last else "at budget"


def _cards(report: Report) -> list[dict[str, Any]]:
    """A task's result each: its sentence, that of the other score, and every setting's scores as dots."""
    first, other = ({one.task: one for one in standings(table)} for table in report.tables)
    table, second = report.tables
    return [
        {
            "standing": first[task],
            "sentence": sentence(table, first[task]),
            "other": _other(
                in_short(table, first[task]), in_short(second, other[task]), which(second)
            ),
            "unranked": without_mean(table, task),
            "dots": _dots(table, first[task]),
            "sizes": sizes_and_scores(table, task),
        }
        for task in table.tasks
    ]


def _other(said: str, also: str, name: str) -> str:
    return f"The {name} score says the same." if said == also else f"By the {name} score: {also}"


def _dots(table: Table, standing: Standing, most: int = 10) -> dict[str, Any]:
    """Seeds' scores and means as percentages of the span of those that are shown."""
    rows = [(setting, table.scores(setting, standing.task)) for setting in standing.order[:most]]
    values = [score for _, scores in rows for score in scores.values() if not math.isnan(score)]
    if not values:
        return {"rows": [], "low": math.nan, "high": math.nan, "more": 0}
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    lines = []
    for setting, scores in rows:
        summary = table.summary(setting, standing.task)
        assert summary is not None
        places = [100 * (score - low) / span for score in scores.values()]
        words = ", ".join(f"seed {seed}: {number(score)}" for seed, score in sorted(scores.items()))
        lines.append({"setting": setting, "mean": summary, "at": 100 * (summary.mean - low) / span,
                      "places": places, "words": words})  # fmt: skip
    return {"rows": lines, "low": low, "high": high, "more": len(standing.order) - len(rows)}


def _row(report: Report, setting: Setting) -> dict[str, Any]:
    """A setting's line of the table: for each task the summary of either score."""
    tables = report.tables
    runs = [
        run for task in tables[0].tasks for run in tables[0].cells.get((setting, task), {}).values()
    ]
    parameters = [run.results["adapter_parameters"] for run in runs]
    cells = [[table.summary(setting, task) for table in tables] for task in tables[0].tasks]
    return {"setting": setting, "cells": cells, "parameters": sum(parameters) / len(parameters)}


def _highest(tables: Sequence[Table], task: str) -> list[float]:
    """The highest mean of a task by either score."""
    means = [
        [one.mean for setting in table.settings if (one := table.summary(setting, task))]
        for table in tables
    ]
    return [
        max((mean for mean in column if not math.isnan(mean)), default=math.nan) for column in means
    ]


def _run(report: Report, run: Run) -> dict[str, Any]:
    return {
        "task": run.results["task"],
        "setting": report.tables[0].setting(run),
        "seed": run.seed,
        "best": run.score(),
        "last": run.score(last=True),
        "epoch": run.results["selected"].get("epoch"),
        "parameters": run.results["adapter_parameters"],
        "seconds": run.results.get("seconds"),
        "folder": shown(run.folder, report.places),
    }


def _differences(table: Table, reference: Setting) -> list[dict[str, Any]]:
    """Comparisons with the reference, and where the interval lies on a scale of the task's own (percent, 50 is zero)."""
    found = differences(table, reference)
    return [{"score": which(table), "one": one, "bar": _bar(one, found)} for one in found]


def _bar(one: Difference, found: Sequence[Difference]) -> dict[str, float] | None:
    if math.isnan(one.found.low):
        return None
    mine = [
        other.found for other in found if other.task == one.task and not math.isnan(other.found.low)
    ]
    reach = max(max(abs(c.low), abs(c.high)) for c in mine) or 1.0
    left, middle, right = (
        50 + 48 * value / reach for value in (one.found.low, one.found.difference, one.found.high)
    )
    return {"left": left, "width": right - left, "middle": middle}


def _agreements(table: Table) -> list[dict[str, Any]]:
    """How far ranks agree between seeds, and what unrelated ranks would reach."""
    found = []
    for setting in table.settings:
        for task in table.tasks:
            runs = list(table.cells.get((setting, task), {}).values())
            value = rank_agreement(runs)
            if not math.isnan(value):
                found.append({"setting": setting, "task": task, "value": value, "seeds": len(runs),
                              "chance": chance_correlation(len(runs[0].ranks))})  # fmt: skip
    return found
