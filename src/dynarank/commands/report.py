"""Tables and pictures of a run, of a sweep, or of several: dynarank report DIR..."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynarank.commands.command_line import (
    CommandParser,
    check_place,
    exit_on_user_error,
    user_path,
)

if TYPE_CHECKING:
    from dynarank.report.runs import Progress

SECONDS_BETWEEN_LINES = 5.0
"""How often progress is told where the output is no terminal."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. It exits with 2 and one message for a user's mistake."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.against is not None and "=" not in options.against:
        parser.error(f"--against {options.against}: must be KEY=VALUE")
    with exit_on_user_error():
        if options.status:
            for folder in options.folders:
                print("\n".join(status(folder)))
            return
        if options.output is not None:
            check_place(f"--output {options.output}", options.output)  # runs take time to read
        # Pandas and scipy take two seconds to import, and --help and --status need neither.
        from dynarank.report.tracker import log_report
        from dynarank.report.write_report import write_report

        text, folder = write_report(
            options.folders,
            against=options.against,
            last=options.last,
            output=options.output,
            under=options.under,
            announce=tell_progress,
        )
        place = log_report(options.folders, folder) if options.wandb else None
    print(text)
    print(f"written: {folder}/, to look at: {folder / 'report.html'}")
    if place is not None:
        print(f"logged to W&B: {place}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser("report", description=__doc__)
    parser.add_argument(
        "folders",
        nargs="+",
        type=user_path,
        metavar="DIR",
        help="a run's folder, or one above several",
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
    parser.add_argument("--output", type=user_path, help="where to write (default: DIR/report)")
    parser.add_argument(
        "--wandb",
        action="store_true",
        help="log the table and the pictures to W&B, in the runs' project",
    )
    return parser


def tell_progress(step: str) -> Progress:
    """Return what tells on standard error how far a step is: in place on a terminal, else lines."""
    terminal = sys.stderr.isatty()
    last_told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last_told
        finished = done == total
        if terminal:
            print(f"\r{step}: {done:,} of {total:,} ", end="", file=sys.stderr, flush=True)
            if finished:
                print(file=sys.stderr)
        elif time.monotonic() - last_told > SECONDS_BETWEEN_LINES:
            last_told = time.monotonic()
            print(f"{step}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    return progress


def status(folder: Path) -> list[str]:
    """Return a line for each run of a sweep, and one that counts them.

    Raises:
        UserError: the folder is no sweep's.
    """
    from dynarank.sweeps.sweep import read_sweep

    points = read_sweep(folder)
    states = [point.status() for point in points]
    lines = []
    for point, state in zip(points, states, strict=True):
        lines.append(f"{state:<8} #{point.number} {' '.join(point.overrides)}")
    counts = []
    for state in ("done", "running", "failed", "missing"):
        counts.append(f"{states.count(state)} {state}")
    return [*lines, f"{folder}: {', '.join(counts)}"]
