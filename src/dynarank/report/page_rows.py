"""What stands in the tables of a page."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from dynarank.report.agreement import rank_agreement
from dynarank.report.comparisons import Difference, differences
from dynarank.report.findings import highest_alone
from dynarank.report.runs import Run
from dynarank.report.significance import Summary, chance_correlation
from dynarank.report.tables import Setting, Table


def folder_name(folder: Path, places: Sequence[Path]) -> str:
    """Return a run's folder as its path below the folder that was asked for."""
    for place in places:
        if folder.is_relative_to(place):
            # Of `.`, which may be a run's own folder, the name is to be found first.
            return str(folder.relative_to(place)) if folder != place else folder.resolve().name
    return os.path.relpath(folder)


def score_name(table: Table) -> str:
    """Return the name of the score that a table holds."""
    return "last epoch" if table.last else "at budget"


@dataclass(frozen=True)
class ScoreCell:
    """A setting's mean on a task by one of the two scores."""

    summary: Summary | None
    highest: bool
    """Whether it is marked as the single highest of its column."""
    others: list[tuple[str, float]]
    """The means of the other metrics, by name."""


@dataclass(frozen=True)
class ScoreRow:
    """A setting's line of the table of scores."""

    setting: Setting
    cells: list[ScoreCell]
    """For each task one cell a score."""
    parameters: float


def score_rows(tables: Sequence[Table]) -> list[ScoreRow]:
    """Return a line for each setting."""
    columns = list(product(tables[0].tasks, tables))
    tops = []
    for task, table in columns:
        means = {}
        for setting in table.settings:
            summary = table.summary(setting, task)
            if summary is not None:
                means[setting] = summary.mean
        tops.append(highest_alone(means))
    rows = []
    for setting in tables[0].settings:
        cells = []
        for (task, table), top in zip(columns, tops, strict=True):
            cells.append(
                ScoreCell(
                    summary=table.summary(setting, task),
                    highest=top == setting,
                    others=other_metrics(table, setting, task),
                )
            )
        parameters = tables[0].parameters(setting)
        rows.append(ScoreRow(setting=setting, cells=cells, parameters=parameters))
    return rows


def other_metrics(table: Table, setting: Setting, task: str) -> list[tuple[str, float]]:
    """Return name and mean of every metric but the one that selects; NaN where one is missing."""
    runs = table.cell(setting, task)
    if not runs:
        return []
    by_run = [run.other_metrics(table.last) for run in runs]
    means = []
    for name in by_run[0]:
        values = [metrics.get(name, math.nan) for metrics in by_run]
        means.append((name, sum(values) / len(values)))
    return means


@dataclass(frozen=True)
class RunRow:
    """A run's line of the table of runs."""

    task: str
    setting: Setting
    seed: int
    best: float
    last: float
    others: list[tuple[str, float]]
    """The other metrics at the selected epoch, by name."""
    epoch: object
    parameters: float
    seconds: object
    folder: str
    collapsed: bool
    """Whether the run predicts one class, or one number, for every row."""


def run_row(table: Table, run: Run, places: Sequence[Path]) -> RunRow:
    """Return a run's line."""
    return RunRow(
        task=run.task,
        setting=table.setting(run),
        seed=run.seed,
        best=run.score(),
        last=run.score(last=True),
        others=list(run.other_metrics().items()),
        epoch=run.results["selected"].get("epoch"),
        parameters=run.adapter_parameters,
        seconds=run.results.get("seconds"),
        folder=folder_name(run.folder, places),
        collapsed=bool(run.results.get("collapsed")),
    )


@dataclass(frozen=True)
class Bar:
    """An interval on a scale of a task's own, in percent; 50 is no difference."""

    left: float
    width: float
    middle: float


@dataclass(frozen=True)
class ComparisonRow:
    """A setting compared with the reference, by one of the two scores."""

    score: str
    difference: Difference
    bar: Bar | None


def comparison_rows(table: Table, reference: Setting) -> list[ComparisonRow]:
    """Return a line for each comparison with the reference."""
    found = differences(table, reference)
    reach: dict[str, float] = {}
    for one in found:
        comparison = one.comparison
        if not math.isnan(comparison.low):
            widest = max(abs(comparison.low), abs(comparison.high))
            reach[one.task] = max(reach.get(one.task, 0.0), widest)
    rows = []
    for one in found:
        bar = _bar(one, reach.get(one.task, 0.0))
        rows.append(ComparisonRow(score=score_name(table), difference=one, bar=bar))
    return rows


def _bar(one: Difference, reach: float) -> Bar | None:
    comparison = one.comparison
    if math.isnan(comparison.low):
        return None
    # 48 of 50: the widest interval ends before the edge.
    scale = 48 / (reach or 1.0)
    left = 50 + scale * comparison.low
    right = 50 + scale * comparison.high
    return Bar(left=left, width=right - left, middle=50 + scale * comparison.difference)


@dataclass(frozen=True)
class AgreementRow:
    """How far the ranks of a setting agree between seeds."""

    setting: Setting
    task: str
    correlation: float
    chance: float
    """What unrelated ranks would reach."""
    seeds: int


def agreement_rows(table: Table) -> list[AgreementRow]:
    """Return a line for each setting and task with at least two runs that have ranks."""
    rows = []
    for setting in table.settings:
        for task in table.tasks:
            runs = table.cell(setting, task)
            correlation = rank_agreement(runs)
            if not math.isnan(correlation):
                chance = chance_correlation(len(runs[0].ranks))
                row = AgreementRow(setting, task, correlation, chance, seeds=len(runs))
                rows.append(row)
    return rows
