"""Score a file of labelled rows with a finished run, by the metrics of its task.

dynarank evaluate RUN_OR_ADAPTER_DIR --input FILE
dynarank evaluate RUN_OR_ADAPTER_DIR --input FILE --json
dynarank evaluate RUN_OR_ADAPTER_DIR --input FILE --output scores.json
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from dynarank.commands.command_line import CommandParser, exit_on_user_error, user_path
from dynarank.commands.run_options import (
    add_run_options,
    load_named_run,
    load_named_task,
    score_lines,
    settings_as_options,
)
from dynarank.commands.table_files import check_input, check_output, read_rows
from dynarank.durable_files import json_text, write_json


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. It exits with 2 and one message for a user's mistake."""
    options = parse(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries' warnings about others
    with exit_on_user_error():
        check_input(options.input, options.format)
        if options.output is not None:
            check_output(options.output, options.input, options.overwrite, (".json",))
        with settings_as_options():
            result = evaluate(options)
        if options.output is not None:
            write_json(options.output, result)
        print(json_text(result) if options.json else _as_lines(result), end="")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's options."""
    parser = CommandParser("evaluate", __doc__)
    add_run_options(parser)
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    parser.add_argument(
        "--output", metavar="FILE", type=user_path, help="write the scores, too: a .json file"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace output that is there")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        parser.error(f"--batch-size {options.batch_size}: at least 1")
    if options.input is None:
        parser.error("give the labelled rows: --input FILE")
    return options


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Return the scores of the input, with what they are of. Raises `UserError`."""
    from dynarank.tasks.sources import used_columns

    task = load_named_task(options)
    read = partial(task.read_file, used=used_columns(task.config))
    rows = read_rows(options.input, options.format, read)
    labelled = task.check(rows, f"--input {options.input}", labelled=True)
    predictor = load_named_run(options, task)
    _, evaluation = predictor.predict_and_score(labelled, options.batch_size)
    return {
        "run": str(options.source),
        "input": options.input,
        "task": task.config.name,
        "rows": len(labelled),
        **asdict(evaluation),
    }


def _as_lines(result: dict[str, Any]) -> str:
    """Return the scores as text, a line each."""
    first = f"{result['rows']:,} rows of {result['input']}"
    return "\n".join([first, *score_lines(result)]) + "\n"
