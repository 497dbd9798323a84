"""What a model would score that has learned nothing: the majority class, or the mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dynarank.report.findings import number
from dynarank.report.run_reader import is_score
from dynarank.report.runs import Run
from dynarank.report.tables import Table


@dataclass(frozen=True)
class Baseline:
    """The score without learning, in the metric that selects."""

    name: str
    """What it is: 'majority class', 'mean'."""
    score: float


def run_baseline(run: Run) -> Baseline | None:
    """Return what a run's metrics.json says of its baseline; None where it says nothing usable.

    The field `baseline` holds the metrics by name, or `{"name": ..., "metrics": {...}}`.
    """
    record = run.results.get("baseline")
    if not isinstance(record, dict):
        return None
    metrics = record.get("metrics", record)
    value = metrics.get(run.metric) if isinstance(metrics, dict) else None
    if value is None or not is_score(value) or math.isnan(value):
        return None
    name = record.get("name")
    return Baseline(name=name if isinstance(name, str) else "baseline", score=float(value))


def task_baseline(table: Table, task: str) -> Baseline | None:
    """Return the baseline of a task; None where runs record none, or not the same."""
    # A run that records none adds None, and so counts as one that differs.
    found = {run_baseline(run) for run in table.runs() if run.task == task}
    return found.pop() if len(found) == 1 else None


def baseline_line(table: Table, task: str) -> str:
    """Return a sentence with the baseline's score; empty where it is not known."""
    baseline = task_baseline(table, task)
    if baseline is None:
        return ""
    return (
        f"A model that has learned nothing ({baseline.name}) "
        f"scores {number(baseline.score)} {table.metrics[task]}."
    )


def collapsed_runs(table: Table, task: str) -> list[Run]:
    """Return the runs of a task that predict one class, or one number, for every row."""
    return [run for run in table.runs() if run.task == task and run.results.get("collapsed")]


def collapsed_line(table: Table, task: str) -> str:
    """Return a sentence about the runs that predict the same for every row; empty if none does."""
    count = len(collapsed_runs(table, task))
    if not count:
        return ""
    runs = sum(run.task == task for run in table.runs())
    return f"{count} of {runs} runs predict{'s' if count == 1 else ''} the same for every row."
