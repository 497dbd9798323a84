"""table.csv: a row a setting and task, for other programs."""

from __future__ import annotations

import csv
import io
from typing import Any

from dynarank.report.tables import Table

HEADS = [
    "task",
    "metric",
    "mean",
    "sd",
    "n",
    "low",
    "high",
    "seeds",
    "scores",
    "adapter_parameters",
]
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""


def as_csv(table: Table) -> str:
    """Return mean, standard deviation, n, interval, every seed's score, and the size."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*map(without_formula, table.keys), *HEADS])
    for setting in table.settings:
        for task in table.tasks:
            summary = table.summary(setting, task)
            if summary is None:
                continue
            scores = sorted(table.scores(setting, task).items())
            row = [
                *map(without_formula, setting),
                without_formula(task),
                without_formula(table.metrics[task]),
                summary.mean,
                summary.sd,
                summary.n,
                summary.low,
                summary.high,
                " ".join(str(seed) for seed, _ in scores),
                " ".join(f"{score:.6g}" for _, score in scores),
                f"{table.parameters(setting, task):.0f}",
            ]
            writer.writerow(row)
    return text.getvalue()


def without_formula(value: Any) -> Any:
    """Return a cell's value; text that begins like a formula gets an apostrophe before it."""
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return f"'{value}"
    return value
