"""report.md: the result in text, with tables."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

from dynarank.report.agreement import rank_agreement
from dynarank.report.baselines import baseline_line, collapsed_line
from dynarank.report.comparisons import Difference, differences, standings
from dynarank.report.findings import headline, number, without_mean
from dynarank.report.page_rows import other_metrics
from dynarank.report.runs import LeftOut
from dynarank.report.sizes import best_under, sizes_and_scores, undominated
from dynarank.report.tables import Setting, Table, key_name


def report_text(
    table: Table, reference: Setting, left_out: Sequence[LeftOut], under: int | None = None
) -> str:
    """Return the report as markdown.

    `under` is a number of adapter parameters: the best setting with no more of them is named.
    """
    which = "of the last epoch" if table.last else "of the best epoch at budget"
    parts = [
        f"{escaped(headline(table, standings(table)))}\n",
        f"Model: {escaped(', '.join(models(table)))}\n",
        f"Scores {which}: mean ± standard deviation over seeds.\n\n{scores_table(table)}",
    ]
    for task in table.tasks:
        remarks = (
            without_mean(table, task),
            baseline_line(table, task),
            collapsed_line(table, task),
            _test_line(table, task),
        )
        for line in remarks:
            if line:
                parts.append(f"{escaped(task)}: {escaped(line)}\n")
    if table.implied:
        names = escaped(", ".join(table.implied))
        parts.append(f"Along with these settings, others differ: {names}.\n")
    if len(table.settings) > 1:
        parts.append(differences_table(table, reference, differences(table, reference)))
    agreements = _agreements(table)
    if agreements:
        parts.append(
            "Do ranks fall alike under other seeds? "
            f"Mean rank correlation over matrices:\n\n{agreements}"
        )
    sizes = _sizes(table, under)
    if sizes:
        parts.append(sizes)
    if left_out:
        named = "".join(f"- {escaped(run)}\n" for run in left_out)
        parts.append(f"Left out:\n\n{named}")
    return "\n".join(parts)


def _test_line(table: Table, task: str) -> str:
    """Return the mean test scores of the settings that were tested; empty if none was."""
    parts = []
    for setting in table.settings:
        means = [
            f"{name.removeprefix('test ')} {number(value)}"
            for name, value in other_metrics(table, setting, task)
            if name.startswith("test ")
        ]
        if means:
            parts.append(f"{table.label(setting)}: {', '.join(means)}")
    return f"On test rows, once: {'; '.join(parts)}." if parts else ""


def models(table: Table) -> list[str]:
    """Return the names of the models that were trained, by the alphabet."""
    return sorted({run.model for run in table.runs()})


def scores_table(table: Table) -> str:
    """Return a row a setting: its size, and mean, spread and number of seeds for each task."""
    heads = [escaped(key_name(key)) for key in table.keys]
    heads += [f"{escaped(task)} ({escaped(table.metrics[task])})" for task in table.tasks]
    heads.append("adapter parameters")
    lines = [_line(heads), _line(["---"] * len(heads))]
    for setting in table.settings:
        cells = [escaped(value) for value in setting]
        cells += [_cell(table, setting, task) for task in table.tasks]
        cells.append(f"{table.parameters(setting):,.0f}")
        lines.append(_line(cells))
    return "".join(lines)


def _cell(table: Table, setting: Setting, task: str) -> str:
    summary = table.summary(setting, task)
    if summary is None:
        return "-"
    if summary.undefined:
        return f"- ({summary.undefined} of {summary.n} seeds without a score)"
    spread = "" if summary.n == 1 else f" ± {summary.sd:.4f}"
    return f"{summary.mean:.4f}{spread} (n={summary.n})"


def differences_table(table: Table, reference: Setting, found: Sequence[Difference]) -> str:
    """Return a row a comparison with the reference, with what may be said of it."""
    if not found:
        return "Nothing to compare: no other setting shares a task and a seed.\n"
    heads = ["setting", "task", "difference", "95 % interval"]
    heads += ["p (t)", "p (Holm)", "p (flips)", "n", "verdict"]
    lines = [
        f"Less {escaped(table.label(reference))}, paired by seed:\n\n",
        _line(heads),
        _line(["---"] * len(heads)),
    ]
    for one in found:
        comparison = one.comparison
        interval = f"{comparison.low:+.4f} to {comparison.high:+.4f}"
        cells = [
            escaped(table.label(one.setting)),
            escaped(one.task),
            f"{comparison.difference:+.4f}",
            "-" if math.isnan(comparison.low) else interval,
            _p_value(comparison.p_t),
            _p_value(one.p_holm),
            _p_value(comparison.p_flips),
            str(comparison.n),
            str(one.verdict),
        ]
        lines.append(_line(cells))
    return "".join(lines)


def _p_value(p: float) -> str:
    return "-" if math.isnan(p) else f"{p:.4f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _sizes(table: Table, under: int | None) -> str:
    """Return the best setting for any number of adapter parameters, or for at most `under`."""
    if len(table.settings) < 2:
        return ""
    lines = []
    for task in table.tasks:
        points = sizes_and_scores(table, task)
        chosen = undominated(points)
        if under is not None:
            best = best_under(points, under)
            chosen = [best] if best is not None else []
            if best is None:
                lines.append(f"- {escaped(task)}: no setting is so small\n")
        for point in chosen:
            label = escaped(table.label(point.setting))
            size = f"{point.parameters:,.0f}"
            lines.append(f"- {escaped(task)}, {size}: {label}, {number(point.score)}\n")
    head = "Best mean score with no more adapter parameters"
    if under is not None:
        head = f"Best with at most {under:,} adapter parameters"
    return f"{head}:\n\n{''.join(lines)}" if lines else ""


def _agreements(table: Table) -> str:
    lines = []
    for setting in table.settings:
        for task in table.tasks:
            agreement = rank_agreement(table.cell(setting, task))
            if not math.isnan(agreement):
                label = escaped(table.label(setting))
                lines.append(f"- {label}, {escaped(task)}: {agreement:.2f}\n")
    return "".join(lines)


def escaped(content: object) -> str:
    """Return text that markdown shows as it is: no HTML, no link, no cell's end, one line."""
    text = re.sub(r"\s+", " ", str(content))
    text = "".join(sign for sign in text if sign.isprintable())
    text = re.sub(r"([\\`*\[\]|])", r"\\\1", text)
    return html.escape(text, quote=False)
