"""Predict new rows with a finished run, in their order.

  dynarank predict RUN_OR_ADAPTER_DIR --input FILE --output FILE
  dynarank predict RUN_OR_ADAPTER_DIR --input - --format jsonl --output FILE
  dynarank predict RUN_OR_ADAPTER_DIR --glue-submission DIR

Rows that carry labels are scored too.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dynarank.commands.command_line import CommandParser, exit_on_user_error, make_folder, user_path
from dynarank.commands.run_options import (
    add_run_options,
    load_named_run,
    load_named_task,
    score_lines,
    settings_as_options,
)
from dynarank.commands.table_files import (
    FORMATS,
    check_input,
    check_output,
    read_rows,
    write_rows,
)
from dynarank.errors import UserError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

    from dynarank.commands.glue_submission import Submission
    from dynarank.runs.predictor import Predictor, Record
    from dynarank.tasks.base import Task

log = logging.getLogger(__name__)

ROW_NUMBER = "row"
"""The column that counts rows from 0, where they have no ids."""
ENDINGS = tuple(f".{form}" for form in FORMATS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. It exits with 2 and one message for a user's mistake."""
    options = parse(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries' warnings about others
    with exit_on_user_error():
        _check_files(options)
        # All that can be refused is, before the model is loaded.
        task = load_named_task(options)
        rows, submission = None, None
        if options.input is not None:
            with settings_as_options():
                rows = _read_input(task, options)
        if options.glue_submission is not None:
            submission = _plan_submission(task, options)
        predictor = load_named_run(options, task)
        if rows is not None:
            with settings_as_options():
                _predict_rows(predictor, rows, options)
        if submission is not None:
            for path in submission.write(predictor, options.batch_size):
                print(f"for the GLUE site: {path}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's options. It exits with 2 for those that do not fit together."""
    parser = CommandParser("predict", __doc__)
    add_run_options(parser)
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=user_path,
        help="predictions: .csv, .tsv, .jsonl or .parquet",
    )
    parser.add_argument(
        "--keep",
        metavar="COLUMN",
        action="append",
        default=[],
        help="carry a column of the input into the output (may be given again)",
    )
    parser.add_argument(
        "--keep-all", action="store_true", help="carry all columns of the input into the output"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace output that is there")
    parser.add_argument(
        "--glue-submission",
        metavar="DIR",
        type=user_path,
        help="write the GLUE site's files for the test set of the run's task",
    )
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        parser.error(f"--batch-size {options.batch_size}: at least 1")
    if (options.input is None) != (options.output is None):
        parser.error("give --input and --output together")
    if options.input is None and options.glue_submission is None:
        parser.error("give --input and --output, or --glue-submission")
    return options


def _check_files(options: argparse.Namespace) -> None:
    """Refuse, before anything slow, files that cannot be read, or that must not be written."""
    if options.input is not None:
        check_input(options.input, options.format)
        check_output(options.output, options.input, options.overwrite, ENDINGS)
    if options.glue_submission is not None:
        make_folder("--glue-submission", options.glue_submission)


@dataclass(frozen=True)
class InputRows:
    """The input, read and checked."""

    rows: Dataset
    """As they were read."""
    kept: Sequence[str]
    """The columns that the output carries."""
    checked: Dataset
    """In the form that is predicted."""
    labelled: Dataset | None
    """In the form that is scored; None where there are no labels."""


def _read_input(task: Task[Any], options: argparse.Namespace) -> InputRows:
    """Return the rows of the input. Raises `UserError` for what cannot be predicted."""
    read = partial(task.read_file, used=_needed_columns(task, options))
    rows = read_rows(options.input, options.format, read)
    where = f"--input {options.input}"
    return InputRows(
        rows=rows,
        kept=_columns_to_keep(rows, options, where),
        checked=task.check(rows, where, labelled=False),
        labelled=_labelled(task, rows, where),
    )


def _predict_rows(predictor: Predictor, given: InputRows, options: argparse.Namespace) -> None:
    """Predict the rows into the output, and score them where they have labels."""
    scores: dict[str, Any] = {}
    if given.labelled is None:
        records = predictor(given.checked, options.batch_size)
    else:
        records, evaluation = predictor.predict_and_score(given.labelled, options.batch_size)
        if predictor.task.scored_by_features:
            # Given answers were scored; the model's own is written from the question alone.
            written = predictor(given.checked, options.batch_size)
            records = [known | own for known, own in zip(records, written, strict=True)]
        scores = asdict(evaluation)
    write_rows(options.output, _joined(predictor.task, given.rows, given.kept, records))
    print(f"{len(records):,} rows predicted: {options.output}")
    for line in score_lines(scores) if scores else ():
        print(line)


def _needed_columns(task: Task[Any], options: argparse.Namespace) -> set[str] | None:
    """Return the columns whose values must be sound; None for all.

    Labels are not needed: a row is predicted without one.
    """
    from dynarank.tasks.sources import used_columns

    if options.keep_all:
        return None
    labels = {task.columns(labelled=True).get(role) for role in task.labels_in}
    return (used_columns(task.config) - labels) | set(options.keep)


def _columns_to_keep(rows: Dataset, options: argparse.Namespace, where: str) -> list[str]:
    """Return the names of the input's columns that the output carries. Raises `UserError`."""
    if options.keep_all:
        return list(rows.column_names)
    for column in options.keep:
        if column not in rows.column_names:
            known = nearest(column, rows.column_names)
            raise UserError(f"--keep {column}: {where} has no such column. {known}")
    return list(dict.fromkeys(options.keep))


def _labelled(task: Task[Any], rows: Dataset, where: str) -> Dataset | None:
    """Return the rows with their labels checked; None where there are none to be scored."""
    if not task.can_be_scored(rows):
        return None
    try:
        return task.check(rows, where, labelled=True)
    except UserError as error:
        log.warning("not scored: %s", error)
        return None


def _joined(
    task: Task[Any], rows: Dataset, kept: Sequence[str], records: Sequence[Record]
) -> list[Record]:
    """Return the lines of the output: the row's id or number, the columns kept, the prediction.

    The input's columns keep their names. A predicted value whose name one of them has is called
    `predicted_NAME`.
    """
    column = task.id_column(rows)
    carried = [] if column is None else [column]
    carried += [name for name in kept if name not in carried]
    values = {name: rows[name][:] for name in carried}
    number = _free_name(ROW_NUMBER, carried, "number_of_")
    # An input without rows was refused, and all records have the same fields.
    names = {name: _free_name(name, carried, "predicted_") for name in records[0]}
    for name, other in names.items():
        if other != name:
            print(f"the predicted {name} stands in the column {other}", file=sys.stderr)
    lines = []
    for index, record in enumerate(records):
        line: Record = {number: index} if column is None else {}
        line |= {name: values[name][index] for name in carried}
        line |= {names[name]: value for name, value in record.items()}
        lines.append(line)
    return lines


def _free_name(name: str, taken: Sequence[str], prefix: str) -> str:
    """Return the name, with the prefix before it as often as others have that name."""
    while name in taken:
        name = prefix + name
    return name


def _plan_submission(task: Task[Any], options: argparse.Namespace) -> Submission:
    from dynarank.commands.glue_submission import plan_submission
    from dynarank.pretrained.hub import HubConfig

    hub = HubConfig(options.hub_root)
    return plan_submission(task, hub, options.glue_submission, options.overwrite)
