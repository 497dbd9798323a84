"""Tables and pictures of a run, of a sweep, or of several: python -m dynarank.report DIR... [--against KEY=VALUE]"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dynarank.errors import UserError
from dynarank.report.agreement import rank_agreement
from dynarank.report.findings import (
    best_under,
    headline,
    number,
    sizes_and_scores,
    standings,
    undominated,
    without_mean,
)
from dynarank.report.latex import latex
from dynarank.report.page import Report, page
from dynarank.report.pictures import draw_pictures, save
from dynarank.report.runs import LeftOut, read_runs
from dynarank.report.tables import (
    Table,
    as_csv,
    build_table,
    differences,
    differences_markdown,
    find_setting,
    markdown,
)
from dynarank.report.tracker import log_report

MOST_NAMED = 3
"""Folders that the page's title names."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exits with 2 and one message for a user's mistake."""
    parser = argparse.ArgumentParser("python -m dynarank.report", description=__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="a run's folder, or one above several"
    )
    parser.add_argument(
        "--against",
        metavar="KEY=VALUE",
        help="the setting that others are compared with (default: the first)",
    )
    parser.add_argument(
        "--last", action="store_true", help="score the last epoch instead of the best at budget"
    )
    parser.add_argument(
        "--status",
        action="store_true",
        help="of a sweep: which runs are done, running, failed, missing",
    )
    parser.add_argument(
        "--under",
        type=int,
        metavar="N",
        help="name the best setting with at most N adapter parameters",
    )
    parser.add_argument("--output", type=Path, help="where to write (default: DIR/report)")
    parser.add_argument(
        "--wandb",
        action="store_true",
        help="log the table and the pictures to W&B, in the runs' project",
    )
    options = parser.parse_args(arguments)
    try:
        if options.status:
            print("\n".join(line for folder in options.folders for line in status(folder)))
            return
        text, folder = report(
            options.folders, options.against, options.last, options.output, options.under
        )
        logged = log_report(options.folders, folder) if options.wandb else None
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(text)
    print(f"written: {folder}/, to look at: {folder / 'report.html'}")
    if logged:
        print(f"logged to W&B: {logged}")


def status(folder: Path) -> list[str]:
    """A line for each run of a sweep, and one that counts them. Raises `UserError` where the folder is no sweep's."""
    from dynarank.sweeps.sweep import read_sweep

    points = read_sweep(folder)
    states = [point.status() for point in points]
    lines = [
        f"{state:<8} #{point.number} {' '.join(point.overrides)}"
        for point, state in zip(points, states, strict=True)
    ]
    counts = ", ".join(
        f"{states.count(state)} {state}" for state in ("done", "running", "failed", "missing")
    )
    return [*lines, f"{folder}: {counts}"]


def report(
    folders: Sequence[Path],
    against: str | None = None,
    last: bool = False,
    output: Path | None = None,
    under: int | None = None,
) -> tuple[str, Path]:
    """Write report.html, report.md, the tables and pictures; returns the text and the folder. Raises `UserError`."""
    if under is not None and under < 0:
        raise UserError(f"--under {under}: a number of adapter parameters, 0 or more")
    runs, left_out = read_runs(folders)
    table = build_table(runs, last)
    reference = find_setting(table, against)
    output = output or folders[0] / "report"
    output.mkdir(parents=True, exist_ok=True)
    text = report_text(
        table,
        differences_markdown(table, reference, differences(table, reference)),
        left_out,
        under,
    )
    (output / "report.md").write_text(text)
    (output / "table.csv").write_text(as_csv(table))
    (output / "table.tex").write_text(latex(table))
    pictures = draw_pictures(table, runs)
    for picture in pictures:
        save(picture, output)
    names = [folder.resolve().name for folder in folders]
    title = (
        ", ".join(names)
        if len(names) <= MOST_NAMED
        else f"{names[0]} and {len(names) - 1} more folders"
    )
    tables = (table, replace(table, last=not last))
    content = Report(title, folders, tables, reference, table.runs(), left_out, pictures, under)
    (output / "report.html").write_text(page(content), encoding="utf-8")
    return text, output


def report_text(
    table: Table, compared: str, left_out: Sequence[LeftOut], under: int | None = None
) -> str:
    """The report as markdown."""
    which = "of the last epoch" if table.last else "of the best epoch at budget"
    parts = [
        f"{headline(table, standings(table))}\n",
        f"Scores {which}: mean ± standard deviation over seeds.\n\n{markdown(table)}",
    ]
    parts += [f"{task}: {said}\n" for task in table.tasks if (said := without_mean(table, task))]
    if table.implied:
        parts.append(f"Along with these settings, others differ: {', '.join(table.implied)}.\n")
    if len(table.settings) > 1:
        parts.append(compared)
    if agreements := _agreements(table):
        parts.append(
            f"Do ranks fall alike under other seeds? Mean rank correlation over matrices:\n\n{agreements}"
        )
    if sizes := _sizes(table, under):
        parts.append(sizes)
    if left_out:
        parts.append("Left out:\n\n" + "".join(f"- {one}\n" for one in left_out))
    return "\n".join(parts)


def _sizes(table: Table, under: int | None) -> str:
    """The best setting for any number of adapter parameters; with at most `under` of them where that is given."""
    lines = []
    for task in table.tasks if len(table.settings) > 1 else []:
        points = sizes_and_scores(table, task)
        chosen = undominated(points)
        if under is not None:
            best = best_under(points, under)
            chosen = [best] if best else []
            lines += [] if best else [f"- {task}: no setting is so small\n"]
        lines += [
            f"- {task}, {p.parameters:,.0f}: {table.label(p.setting)}, {number(p.score)}\n"
            for p in chosen
        ]
    head = (
        "Best mean score with no more adapter parameters"
        if under is None
        else f"Best with at most {under:,} adapter parameters"
    )
    return f"{head}:\n\n{''.join(lines)}" if lines else ""


def _agreements(table: Table) -> str:
    lines = []
    for setting in table.settings:
        for task in table.tasks:
            agreement = rank_agreement(list(table.cells.get((setting, task), {}).values()))
            if not math.isnan(agreement):
                lines.append(f"- {table.label(setting)}, {task}: {agreement:.2f}\n")
    return "".join(lines)
