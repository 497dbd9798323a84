"""What predict and evaluate share: options that name a run and its rows, and printed scores."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dynarank.commands.command_line import add_hub_root, user_path
from dynarank.commands.table_files import FORMATS
from dynarank.errors import UserError, nearest

if TYPE_CHECKING:
    from dynarank.runs.predictor import Predictor
    from dynarank.tasks.base import Task


UNDEFINED = "not defined on these rows"


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a run and its rows, which predict and evaluate share."""
    parser.add_argument(
        "source",
        type=user_path,
        metavar="RUN_OR_ADAPTER_DIR",
        help="a run's folder, or its adapter folder",
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="rows with the task's columns: .csv, .tsv, .jsonl or .parquet; for words and tags "
        "also CoNLL's columns, for images also a folder; - for standard input",
    )
    parser.add_argument("--format", choices=FORMATS, help="what standard input holds")
    parser.add_argument(
        "--column",
        metavar="ROLE=NAME",
        action="append",
        default=[],
        help="the input's name of a column, as in task.columns.ROLE=NAME",
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="the base model's hub id or folder, where it has moved"
    )
    parser.add_argument(
        "--over-budget",
        action="store_true",
        help="use the adapter of a run that ended before its ranks were frozen",
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with the base model",
    )
    parser.add_argument(
        "--max-answer",
        type=int,
        metavar="N",
        help="tokens of an answer at most (default: the run's task.max_answer)",
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("--device", help="cpu, cuda, mps; by default a GPU where there is one")
    add_hub_root(parser)


def load_named_task(options: argparse.Namespace) -> Task[Any]:
    """Return the task of the run that the options name, as they change it. Raises `UserError`.

    Commands read their rows with it before the model is loaded, which is slow.
    """
    from dynarank.pretrained.hub import check_present
    from dynarank.runs.predictor import load_task
    from dynarank.runs.preflight import named_device

    if options.max_answer is not None and options.max_answer < 1:
        raise UserError(f"--max-answer {options.max_answer}: at least 1")
    # A large file of rows takes time to read, too.
    named_device(options.device)
    if options.base is not None:
        check_present("--base", options.base)
    task = load_task(options.source, options.over_budget)
    _rename_columns(task, options.column)
    _limit_answers(task, options.max_answer)
    return task


def load_named_run(options: argparse.Namespace, task: Task[Any]) -> Predictor:
    """Return the predictor that the options name, for its task. Raises `UserError`."""
    from dynarank.pretrained.hub import HubConfig
    from dynarank.runs.predictor import load_predictor

    return load_predictor(
        options.source,
        HubConfig(options.hub_root),
        base=options.base,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
        over_budget=options.over_budget,
        task=task,
    )


def _limit_answers(task: Task[Any], most: int | None) -> None:
    if most is None:
        return
    if not hasattr(task.config, "max_answer"):
        raise UserError(f"--max-answer {most}: task={task.config.name} has no task.max_answer")
    task.config.max_answer = most


@contextmanager
def settings_as_options(column: str = r"--column \1=NAME") -> Iterator[None]:
    """Have a task's errors advise what can be done: a finished run takes no settings.

    Args:
        column: what gives a column's name, in place of task.columns.ROLE, which is group 1.
    """
    try:
        yield
    except UserError as error:
        message = str(error)
        # In this order: the last one would change what the first one looks for.
        for setting, advice in (
            (r", or set task\.columns\.id=null", ""),
            (r", or (name all in )?task\.labels", ""),
            (r"Set task\.\w+=\d+(, or method\.reserved=\d+)?", "Give shorter texts"),
            (r"Name yours in", "Name yours by"),
            (r"task\.columns\.(\w+)", column),
        ):
            message = re.sub(setting, advice, message)
        raise UserError(message) from None


def _rename_columns(task: Task[Any], given: Sequence[str]) -> None:
    columns = task.config.columns
    for part in given:
        role, _, name = part.partition("=")
        if role not in vars(columns) or not name:
            raise UserError(f"--column {part}: must be ROLE=NAME. {nearest(role, vars(columns))}")
        setattr(columns, role, name)


def score_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """Return a line for each metric, with the score of a model that has learned nothing.

    A line says so where a metric is not defined on the rows, and where all predictions are one.

    Args:
        evaluation: the fields of a `dynarank.runs.predictor.Evaluation`, by name.
    """
    baseline: Mapping[str, Any] = evaluation["baseline"] or {"name": "", "metrics": {}}
    lines = []
    for name, value in evaluation["metrics"].items():
        line = f"{name}: {value:.4f}" if math.isfinite(value) else f"{name}: {UNDEFINED}"
        if name in baseline["metrics"]:
            line += f" ({baseline['name']}: {baseline['metrics'][name]:.4f})"
        lines.append(line)
    if evaluation["collapsed"] is not None:
        lines.append(f"the model predicts one thing for {evaluation['collapsed']}")
    return lines
