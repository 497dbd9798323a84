"""Tables and pictures of a run, of a sweep, or of several: python -m dynarank.report DIR... [--against KEY=VALUE]"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynarank.errors import UserError
from dynarank.report.runs import Run, read_runs
from dynarank.report.tables import (
    Table,
    as_csv,
    build_table,
    differences,
    differences_markdown,
    find_setting,
    latex,
    markdown,
)
from dynarank.report.tracker import log_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exits with 2 and one message for a user's mistake."""
    parser = argparse.ArgumentParser("python -m dynarank.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run's folder, or one above several")
    parser.add_argument(
        "--against", metavar="KEY=VALUE", help="the setting that others are compared with (default: the first)"
    )
    parser.add_argument("--last", action="store_true", help="score the last epoch instead of the best at budget")
    parser.add_argument("--status", action="store_true", help="of a sweep: which runs are done, running, failed, missing")
    parser.add_argument("--output", type=Path, help="where to write (default: DIR/report)")
    parser.add_argument("--wandb", action="store_true", help="log the table and the pictures to W&B, in the runs' project")
    options = parser.parse_args(arguments)
    try:
        if options.status:
            print("\n".join(line for folder in options.folders for line in status(folder)))
            return
        text, folder = report(options.folders, options.against, options.last, options.output)
        logged = log_report(options.folders, folder) if options.wandb else None
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(text)
    print(f"written: {folder}/")
    if logged:
        print(f"logged to W&B: {logged}")


def status(folder: Path) -> list[str]:
    """A line for each run of a sweep, and one that counts them. Raises `UserError` where the folder is no sweep's."""
    from dynarank.training.sweep import read_sweep

    points = read_sweep(folder)
    states = [point.status() for point in points]
    lines = [f"{state:<8} #{point.number} {' '.join(point.overrides)}" for point, state in zip(points, states, strict=True)]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "running", "failed", "missing"))
    return [*lines, f"{folder}: {counts}"]


def report(
    folders: Sequence[Path], against: str | None = None, last: bool = False, output: Path | None = None
) -> tuple[str, Path]:
    """Write report.md, table.csv, table.tex and pictures; returns the report's text and its folder. Raises `UserError`."""
    runs, unfinished = read_runs(folders)
    table = build_table(runs, last)
    reference = find_setting(table, against)
    output = output or folders[0] / "report"
    output.mkdir(parents=True, exist_ok=True)
    text = report_text(table, differences_markdown(table, reference, differences(table, reference)), unfinished)
    (output / "report.md").write_text(text)
    (output / "table.csv").write_text(as_csv(table))
    (output / "table.tex").write_text(latex(table))
    for name, figure in pictures(table, runs).items():
        for ending in ("png", "svg"):
            figure.savefig(output / f"{name}.{ending}", dpi=150)
    return text, output


def report_text(table: Table, compared: str, unfinished: Sequence[str]) -> str:
    """The report as markdown."""
    which = "of the last epoch" if table.last else "of the best epoch at budget"
    parts = [f"Scores {which}: mean ± standard deviation over seeds.\n\n{markdown(table)}"]
    if table.implied:
        parts.append(f"Along with these settings, others differ: {', '.join(table.implied)}.\n")
    if len(table.settings) > 1:
        parts.append(compared)
    if agreements := _agreements(table):
        parts.append(f"Do ranks fall alike under other seeds? Mean rank correlation over matrices:\n\n{agreements}")
    if unfinished:
        parts.append("Left out:\n\n" + "".join(f"- {line}\n" for line in unfinished))
    return "\n".join(parts)


def _agreements(table: Table) -> str:
    from dynarank.report.plots import rank_agreement

    lines = []
    for setting in table.settings:
        for task in table.tasks:
            agreement = rank_agreement(list(table.cells.get((setting, task), {}).values()))
            if not math.isnan(agreement):
                lines.append(f"- {table.label(setting)}, {task}: {agreement:.2f}\n")
    return "".join(lines)


def pictures(table: Table, runs: Sequence[Run]) -> dict[str, Figure]:
    """Figures by file name; a run's own where there is one alone."""
    from dynarank.report.plots import draw_allocation, draw_budget_against_quality, draw_curves

    found = {f"curves_{task}": draw_curves(table, task) for task in table.tasks}
    if len(table.settings) > 1:
        found |= {f"budget_quality_{task}": draw_budget_against_quality(table, task) for task in table.tasks}
    if len(runs) == 1 and "budget/scheduled" in runs[0].history:
        found["allocation"] = draw_allocation(runs[0])
    return found


if __name__ == "__main__":
    main()
