"""The table as the paper sets its Tables 2 to 6, for booktabs: settings down, tasks across, scores in percent.

A block for each budget where methods are compared, with their parameters; the highest mean of each column in a block
is bold, which says nothing of chance: the differences do.
"""

from __future__ import annotations

import math
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

from dynarank.report.runs import Run
from dynarank.report.tables import Setting, Table

SHOWN = {
    "mnli": ("matched/accuracy", "mismatched/accuracy"),
    "qqp": ("accuracy", "f1"),
    "squad": ("exact_match", "f1"),
    "squad_v2": ("exact_match", "f1"),
    "xsum": ("rouge1", "rouge2", "rougeL"),
    "cnn_dailymail": ("rouge1", "rouge2", "rougeL"),
}
"""Measures in a task's column, where they are more than the one that selects."""
MEASURES = {
    "matthews": "Mcc", "accuracy": "Acc", "matched/accuracy": "m", "mismatched/accuracy": "mm", "f1": "F1",
    "pearson": "Corr", "exact_match": "EM", "rouge1": "R-1", "rouge2": "R-2", "rougeL": "R-L",
}  # fmt: skip
TITLES = {
    "method.name": "Method", "budget.target": "Budget", "budget.init": "Initial budget", "dem.eta": r"$\eta$",
    "dora": "DoRA", "lora": "LoRA", "adalora": "AdaLoRA", "houlsby": "HAdapter", "pfeiffer": "PAdapter",
    "prompt": "Prompt tuning", "bitfit": "BitFit", "full": "Full FT", "head": "Head alone",
    "cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "qqp": "QQP", "mnli": "MNLI", "qnli": "QNLI",
    "rte": "RTE", "wnli": "WNLI", "squad": "SQuAD v1.1", "squad_v2": "SQuAD v2.0", "xsum": "XSum",
    "cnn_dailymail": "CNN/DailyMail", "wmt16_en_ro": "WMT16 en-ro",
}  # fmt: skip
ORDER = ("mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb")
"""The paper's Table 2; other tasks follow by name."""
PERCENT_ALREADY = ("question_answering", "seq2seq")
"""Families whose scorers count to 100."""


def latex(table: Table) -> str:
    """Means and standard deviations over seeds, in percent; an average over tasks where there are several."""
    tasks = sorted(
        table.tasks, key=lambda task: (ORDER.index(task) if task in ORDER else len(ORDER), task)
    )
    sized = "method.name" in table.keys or "budget.target" in table.keys
    columns = [_title(task) for task in tasks] + (["Avg."] if len(tasks) > 1 else [])
    measures = [
        "/".join(MEASURES.get(one, _escaped(one)) for one in _shown(table, task)) for task in tasks
    ]
    labels = [_title(key.removesuffix(".name") if key not in TITLES else key) for key in table.keys]
    before = [*labels, *([r"\# Params"] if sized else [])]
    lines = [
        rf"\begin{{tabular}}{{{'l' * len(labels)}{'r' * (len(before) - len(labels))}{'c' * len(columns)}}}",
        r"\toprule",
        _row([*before, *columns]),
        _row([*[""] * len(before), *measures, *[""] * (len(columns) - len(tasks))]),
    ]
    for _, block in groupby(_by_budget(table), key=lambda setting: _budget(table, setting)):
        lines += [r"\midrule", *_block(table, list(block), tasks, sized)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _block(table: Table, settings: list[Setting], tasks: list[str], sized: bool) -> list[str]:
    """Lines of one budget, the highest mean of each column bold."""
    means = [_means(table, setting, tasks) for setting in settings]
    top = [
        max((value for value in column if not math.isnan(value)), default=math.nan)
        for column in zip(*means, strict=True)
    ]
    lines = []
    for setting, mine in zip(settings, means, strict=True):
        cells = [_cell(table, setting, task) for task in tasks]
        if len(tasks) > 1:
            cells.append("--" if math.isnan(mine[-1]) else f"{mine[-1]:.2f}")
        bold = [
            rf"\textbf{{{c}}}" if value == best else c
            for c, value, best in zip(cells, mine, top, strict=True)
        ]
        size = [_size(table, setting, tasks)] if sized else []
        lines.append(_row([*map(_title, setting), *size, *bold]))
    return lines


def _by_budget(table: Table) -> list[Setting]:
    """Settings in their order; where methods are compared, budget by budget."""
    return sorted(table.settings, key=lambda setting: _budget(table, setting))


def _budget(table: Table, setting: Setting) -> float:
    if "method.name" not in table.keys or "budget.target" not in table.keys:
        return 0.0
    return float(setting[table.keys.index("budget.target")])


def _means(table: Table, setting: Setting, tasks: list[str]) -> list[float]:
    """The selecting measure by task, in percent, and their average where there are several; NaN where a run is missing."""
    found = []
    for task in tasks:
        runs = list(table.cells.get((setting, task), {}).values())
        found.append(fmean(_value(table, run, run.metric) for run in runs) if runs else math.nan)
    means = [*found, fmean(found)] if len(tasks) > 1 else found
    return [round(mean, 2) for mean in means]  # what is equal as shown is equal


def _cell(table: Table, setting: Setting, task: str) -> str:
    """Mean and standard deviation of each measure: 87.65$_{0.12}$/91.02$_{0.20}$."""
    runs = list(table.cells.get((setting, task), {}).values())
    parts = []
    for measure in _shown(table, task) if runs else []:
        values = [_value(table, run, measure) for run in runs]
        undefined = any(map(math.isnan, values))
        spread = f"$_{{\\pm {stdev(values):.2f}}}$" if len(values) > 1 and not undefined else ""
        parts.append("--" if undefined else f"{fmean(values):.2f}{spread}")
    return "/".join(parts) or "--"


def _value(table: Table, run: Run, measure: str) -> float:
    value = run.results["last" if table.last else "metrics"].get(measure)
    if value is None:
        return math.nan
    return float(value) * (1 if run.settings.get("task.family") in PERCENT_ALREADY else 100)


def _shown(table: Table, task: str) -> tuple[str, ...]:
    return SHOWN.get(task, (table.metrics[task],))


def _size(table: Table, setting: Setting, tasks: list[str]) -> str:
    """Mean adapter parameters over tasks and seeds: 0.34M."""
    runs = [run for task in tasks for run in table.cells.get((setting, task), {}).values()]
    return f"{fmean(run.results['adapter_parameters'] for run in runs) / 1e6:.2f}M"


def _row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _title(value: Any) -> str:
    return TITLES.get(str(value), _escaped(value))


def _escaped(value: Any) -> str:
    return "".join(f"\\{sign}" if sign in "&%$#_{}" else sign for sign in str(value))
