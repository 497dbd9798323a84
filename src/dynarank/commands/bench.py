"""Does allocating ranks pay? Methods tuned alike, compared at the same parameters.

dynarank bench benchmarks/does_it_pay/cells.csv --budgets 0.25 --tasks sst2,tweets,mrpc,cola

Runs what the file lacks, and appends each cell; stop it at any time. Several may work on one file
side by side, and --workers starts several. With --report FILE it runs nothing, and writes the
tables between two marks of a markdown file, or a page where FILE ends in .html. With --repeat N it
runs N of the file's cells again, and fails where one of them finds anything else.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from dynarank.commands.bench_checks import cells_of, check_report, check_tasks
from dynarank.commands.command_line import (
    CommandParser,
    exit_on_user_error,
    make_folder,
    user_path,
)
from dynarank.errors import UserError, nearest
from dynarank.sweeps.bench import (
    ARMS,
    BUDGETS,
    FIRST_ARMS,
    SCALES,
    SEEDS,
    TASKS,
    TUNING_SEEDS,
    Cell,
)

NOT_EQUAL = 1
"""The exit code where a repeated cell found something else."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exits with 2 and one message for a user's mistake."""
    options = build_parser().parse_args(list(sys.argv[1:] if arguments is None else arguments))
    with exit_on_user_error():
        _run(options)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser("bench", description=__doc__)
    parser.add_argument("file", type=user_path, help="the csv of cells; made where there is none")
    parser.add_argument(
        "--tasks",
        default=",".join(TASKS),
        help="in the order wanted; with a scale of its own, as cola:longer",
    )
    parser.add_argument("--budgets", default=",".join(f"{b:g}" for b in BUDGETS))
    parser.add_argument("--arms", default=",".join(FIRST_ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument(
        "--scale",
        default="small",
        help="small; longer: three epochs; or whole: all rows, and the task's epochs "
        "(default: small)",
    )
    parser.add_argument(
        "--seeds",
        type=_seeds,
        default=SEEDS,
        metavar="N",
        help=f"compare on the seeds 1 to N, or M to N as 6-10 (default: {len(SEEDS)})",
    )
    parser.add_argument("--most", type=_count, metavar="N", help="cells to run at most")
    parser.add_argument(
        "--workers",
        type=_count,
        default=1,
        metavar="N",
        help="cells to run side by side, each on one thread (default: 1)",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--report", type=user_path, metavar="FILE", help="write the tables, run nothing"
    )
    instead.add_argument(
        "--repeat", type=_count, metavar="N", help="run N cells of the file again, and compare"
    )
    return parser


def _run(options: argparse.Namespace) -> None:
    arms = _known("--arms", "arm", options.arms, ARMS)
    _known_one("--scale", "scale", options.scale, SCALES)
    tasks = _tasks(options.tasks, options.scale)
    budgets = _budgets(options.budgets)
    cells = cells_of(options.file)
    if not cells and (options.report or options.repeat):
        raise UserError(f"{options.file}: holds no cells yet. Run the bench first")
    if options.report is not None:
        _report(options.report, cells)
        return
    if shared := set(options.seeds) & set(TUNING_SEEDS):
        raise UserError(f"--seeds: seed {min(shared)} tunes, and compares nothing")
    if options.repeat is None:
        _refuse_without_sources(options, cells, arms, tasks, budgets)
        check_tasks(tasks)
        make_folder("the bench's file", options.file.parent)
    from dynarank.sweeps.bench_runs import repeat_cells, run_bench

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.repeat is not None:
        found = repeat_cells(options.file, options.repeat)
        equal = sum(repetition.equal for repetition in found)
        print(f"{equal} of {len(found)} cells found the same again.")
        if equal < len(found):
            sys.exit(NOT_EQUAL)
        return
    run_bench(options.file, tasks, budgets, arms, options.most, options.workers, options.seeds)


def _refuse_without_sources(
    options: argparse.Namespace,
    cells: Sequence[Cell],
    arms: Sequence[str],
    tasks: Sequence[str],
    budgets: Sequence[float],
) -> None:
    """Raise `UserError` for an arm that takes from another, which is neither asked for nor there.

    Nothing of that arm could be run, and the command would end without a word.
    """
    there = set(arms)
    for cell in cells:
        if cell.task in tasks and cell.budget in budgets:
            there.add(cell.arm)
    for arm in arms:
        for source in (ARMS[arm].rate_of, ARMS[arm].ranks_of):
            if source is not None and source not in there:
                raise UserError(
                    f"--arms: {arm} takes its rate or its ranks from {source}, of which "
                    f"{options.file} holds no cell under these tasks and budgets. Name both: "
                    f"--arms {source},{arm}"
                )


def _report(path: Path, cells: Sequence[Cell]) -> None:
    check_report(path)
    if path.suffix == ".html":
        from dynarank.report.bench_page import write_page

        write_page(path, cells)
    else:
        from dynarank.report.bench_tables import update_page

        update_page(path, cells)


def _known(option: str, what: str, text: str, known: Iterable[str]) -> list[str]:
    """Return the names of a list. Raises `UserError` for one that is not known."""
    names = text.split(",")
    for name in names:
        _known_one(option, what, name, known)
    return names


def _known_one(option: str, what: str, name: str, known: Iterable[str]) -> None:
    """Raise `UserError` for a name that is not known."""
    if name not in known:
        raise UserError(f"{option}: {name!r} is no {what}. {nearest(name, known)}")


def _tasks(text: str, scale: str) -> list[str]:
    """Return the tasks of a list, each with its own scale or the common one after a colon."""
    words = text.split(",")
    names = [word.partition(":")[0] for word in words]
    _known("--tasks", "task", ",".join(names), _task_names())
    tasks = []
    for word in words:
        task, _, own = word.partition(":")
        wanted = own or scale
        _known_one("--tasks", "scale", wanted, SCALES)
        if wanted == "small":
            tasks.append(task)  # in the file, a task of the small scale has its bare name
        else:
            tasks.append(f"{task}:{wanted}")
    return tasks


def _task_names() -> list[str]:
    """Return the names of the configuration's tasks."""
    from dynarank.config.folders import conf_folder

    return sorted(file.stem for file in (conf_folder() / "task").glob("*.yaml"))


def _budgets(text: str) -> list[float]:
    budgets = []
    for word in text.split(","):
        try:
            budget = float(word)
        except ValueError:
            budget = math.nan
        if not 0 < budget < math.inf:
            raise UserError(
                f"--budgets: {word!r} is no budget. Give mean components of a matrix, above 0, "
                "with commas: --budgets 0.25,1"
            )
        budgets.append(budget)
    return budgets


def _seeds(text: str) -> Sequence[int]:
    first, dash, last = text.partition("-")
    seeds = range(_count(first), _count(last) + 1) if dash else range(1, _count(first) + 1)
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text!r}: wants the lower seed first, as 6-10")
    return seeds


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)
