"""Does allocating ranks pay? Methods tuned alike, compared at the same parameters.

dynarank bench benchmarks/does_it_pay/cells.csv --budgets 0.25 --tasks sst2,tweets,mrpc,cola

Runs what the file lacks, one cell after another, and appends each; stop it at any time. With
--report FILE it runs nothing, and writes the tables between two marks of a markdown file.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from dynarank.errors import nearest


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exits with 2 and one message for a user's mistake."""
    from dynarank.sweeps.bench import ARMS, BUDGETS, FIRST_ARMS, TASKS, read_cells

    parser = argparse.ArgumentParser(
        prog="dynarank bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="the csv of cells; made where there is none")
    parser.add_argument("--tasks", default=",".join(TASKS), help="in the order wanted")
    parser.add_argument("--budgets", default=",".join(f"{b:g}" for b in BUDGETS))
    parser.add_argument("--arms", default=",".join(FIRST_ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--most", type=int, help="cells to run at most")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the tables, run nothing")
    options = parser.parse_args(list(sys.argv[1:] if arguments is None else arguments))
    arms = options.arms.split(",")
    for arm in arms:
        if arm not in ARMS:
            parser.error(f"--arms: {arm} is no arm. {nearest(arm, ARMS)}")
    if options.report is not None:
        from dynarank.report.bench_tables import update_page

        update_page(options.report, read_cells(options.file))
        return
    from dynarank.sweeps.bench_runs import run_bench

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    budgets = [float(budget) for budget in options.budgets.split(",")]
    run_bench(options.file, options.tasks.split(","), budgets, arms, options.most)
