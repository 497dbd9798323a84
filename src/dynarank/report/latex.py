"""table.tex: the table as the paper sets its Tables 2 to 6, for booktabs.

Settings stand down, tasks across, scores in percent. Where methods are compared there is a block
for each budget, with the methods' parameters. The highest mean of each column in a block is bold,
which says nothing of chance: the differences do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

from dynarank.report.run_reader import OPEN
from dynarank.report.runs import Run
from dynarank.report.tables import Setting, Table, key_name

MEASURES = {
    "matthews": "Mcc",
    "accuracy": "Acc",
    "matched/accuracy": "m",
    "mismatched/accuracy": "mm",
    "f1": "F1",
    "pearson": "Corr",
    "exact_match": "EM",
    "rouge1": "R-1",
    "rouge2": "R-2",
    "rougeL": "R-L",
}
"""Short names of metrics."""
KEYS = {
    "method.name": "Method",
    "budget.target": "Budget",
    "budget.init": "Initial budget",
    "dem.eta": r"$\eta$",
}
"""Headings of settings."""
FAMILIES_IN_PERCENT = ("question_answering", "seq2seq")
"""Families of tasks whose scorers count to 100; the others count to 1."""
NO_SHARES = ("log_likelihood", "perplexity", "rmse")
"""Metrics that are no share of anything, and so have no percent."""
SPECIAL_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def latex(table: Table) -> str:
    """Return means and standard deviations over seeds, in percent.

    Where there are several tasks, an average over them stands last.
    """
    sized = "method.name" in table.keys or "budget.target" in table.keys
    columns = [task_title(table, task) for task in table.tasks]
    if len(table.tasks) > 1:
        columns.append("Avg.")
    labels = [_key_title(key) for key in table.keys]
    before = [*labels, r"\# Params"] if sized else labels
    measures = [_measures(table, task) for task in table.tasks]
    empty_before = [""] * len(before)
    empty_after = [""] * (len(columns) - len(measures))
    size_columns = len(before) - len(labels)
    alignment = "l" * len(labels) + "r" * size_columns + "c" * len(columns)
    lines = [
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        _row([*before, *columns]),
        _row([*empty_before, *measures, *empty_after]),
    ]

    def budget(setting: Setting) -> float:
        return _budget(table, setting)

    for _, block in groupby(sorted(table.settings, key=budget), key=budget):
        lines += [r"\midrule", *_block(table, list(block), sized)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _key_title(key: str) -> str:
    return KEYS[key] if key in KEYS else escaped(key_name(key))


def task_title(table: Table, task: str) -> str:
    """Return a task's title, as its configuration has it; its name where none is recorded."""
    return _recorded_title([run for run in table.runs() if run.task == task], "task.title", task)


def method_title(table: Table, method: str) -> str:
    """Return a method's title, as its configuration or its class has it; else its name."""
    runs = [run for run in table.runs() if run.settings.get("method.name") == method]
    return _recorded_title(runs, "method.title", registered_title(method))


def _recorded_title(runs: Sequence[Run], key: str, fallback: str) -> str:
    for run in runs:
        title = run.settings.get(key)
        if isinstance(title, str) and title not in ("", OPEN):
            return escaped(title)
    return escaped(fallback)


def registered_title(method: str) -> str:
    """Return the title of a method of this package; the name of one that is not known here."""
    from dynarank.methods import METHODS

    title = getattr(METHODS.get(method), "title", None)
    return title if isinstance(title, str) else method


def _measures(table: Table, task: str) -> str:
    """Return the short names of the metrics that stand in a task's column."""
    names = []
    for measure in shown_metrics(table, task):
        names.append(MEASURES[measure] if measure in MEASURES else escaped(measure))
    return "/".join(names)


def shown_metrics(table: Table, task: str) -> list[str]:
    """Return the metrics of a task's column: those its configuration shows, or that selects."""
    selects = table.metrics[task]
    for run in table.runs():
        recorded = run.settings.get("task.shown", OPEN)
        if run.task != task or not isinstance(recorded, str) or recorded == OPEN:
            continue
        # A list of a configuration is kept as its text (`run_reader`).
        names = [name.strip(" '\"") for name in recorded.strip("[]").split(",")]
        known = [name for name in names if name in run.results["metrics"]]
        if known:
            return known
    return [selects]


def _block(table: Table, settings: list[Setting], sized: bool) -> list[str]:
    """Return the rows of one budget; the highest mean of each column is bold."""
    means = [_means(table, setting) for setting in settings]
    tops = [_top(column) for column in zip(*means, strict=True)]
    lines = []
    for setting, own_means in zip(settings, means, strict=True):
        cells = [_cell(table, setting, task) for task in table.tasks]
        if len(table.tasks) > 1:
            average = own_means[-1]
            cells.append("--" if math.isnan(average) else f"{average:.2f}")
        for column, (mean, top) in enumerate(zip(own_means, tops, strict=True)):
            # NaN equals nothing, so that nothing is bold where there is no highest.
            if mean == top:
                cells[column] = rf"\textbf{{{cells[column]}}}"
        pairs = zip(table.keys, setting, strict=True)
        values = [_value_title(table, key, value) for key, value in pairs]
        size = [_size(table, setting)] if sized else []
        lines.append(_row([*values, *size, *cells]))
    return lines


def _top(column: Sequence[float]) -> float:
    """Return a column's highest mean; NaN where there is none, or where all rows are alike."""
    defined = [mean for mean in column if not math.isnan(mean)]
    if not defined:
        return math.nan
    all_alike = len(defined) > 1 and len(set(defined)) == 1
    return math.nan if all_alike else max(defined)


def _value_title(table: Table, key: str, value: Any) -> str:
    return method_title(table, str(value)) if key == "method.name" else escaped(value)


def _budget(table: Table, setting: Setting) -> float:
    """Return the budget whose block a setting stands in; 0 where methods are not compared."""
    if "method.name" not in table.keys or "budget.target" not in table.keys:
        return 0.0
    value = setting[table.keys.index("budget.target")]
    return float(value) if isinstance(value, int | float) else 0.0


def _means(table: Table, setting: Setting) -> list[float]:
    """Return the selecting metric by task, in percent, and their average if there are several.

    NaN stands where a run or a score is missing. Means are rounded as they are printed, so that
    what is printed equal is equal.
    """
    means = []
    for task in table.tasks:
        values = [_percent(table, run, run.metric) for run in table.cell(setting, task)]
        means.append(fmean(values) if values else math.nan)
    if len(table.tasks) > 1:
        means.append(fmean(means))
    return [round(mean, 2) for mean in means]


def _cell(table: Table, setting: Setting, task: str) -> str:
    r"""Return mean and standard deviation of each metric: 87.65$_{\pm 0.12}$/91.02$_{\pm 0.20}$."""
    runs = table.cell(setting, task)
    parts = []
    for measure in shown_metrics(table, task) if runs else []:
        values = [_percent(table, run, measure) for run in runs]
        if any(math.isnan(value) for value in values):
            parts.append("--")
        elif len(values) == 1:
            parts.append(f"{values[0]:.2f}")
        else:
            parts.append(f"{fmean(values):.2f}$_{{\\pm {stdev(values):.2f}}}$")
    return "/".join(parts) or "--"


def _percent(table: Table, run: Run, measure: str) -> float:
    value = run.metrics(table.last).get(measure, math.nan)
    if measure.rpartition("/")[2] in NO_SHARES:
        return value
    return value * (1 if run.settings.get("task.family") in FAMILIES_IN_PERCENT else 100)


def _size(table: Table, setting: Setting) -> str:
    """Return the mean adapter parameters over tasks and seeds: 0.34M."""
    return f"{table.parameters(setting) / 1e6:.2f}M"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def escaped(value: object) -> str:
    """Return a text in which no sign has a meaning for LaTeX, on one line."""
    text = " ".join(str(value).split())
    # Sign by sign: a second replacement would find the signs of the first.
    return "".join(SPECIAL_SIGNS.get(sign, sign) for sign in text if sign.isprintable())
