"""What `dynarank bench` checks of its file, its report and its tasks before anything is run."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from dynarank.commands.command_line import make_folder
from dynarank.errors import UserError, kind_and_first_line
from dynarank.sweeps.bench import COLUMNS, Cell, read_cells

KIND = "encoder"
"""What the model is that all cells adapt."""


def cells_of(path: Path) -> list[Cell]:
    """Return the cells of a bench's file; none where there is no file yet.

    Raises:
        UserError: it is no file of cells, or a line of it is damaged.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder. Name a csv file")
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            # Cells would be appended below any other first line, and could not be read again.
            if next(lines, None) != COLUMNS:
                raise UserError(
                    f"{path}: its first line is not that of a bench's file "
                    f"({','.join(COLUMNS[:3])}, ...). Name another file, or remove this one"
                )
            for line in lines:
                if len(line) != len(COLUMNS):
                    raise UserError(
                        f"{path}: line {lines.line_num} has {len(line)} of {len(COLUMNS)} values. "
                        "Remove it, and its cell is run again"
                    )
        return read_cells(path)
    except UserError:
        raise  # it is a ValueError, which the next clause would take
    except (OSError, ValueError, csv.Error) as error:
        reason = kind_and_first_line(error)
        raise UserError(f"{path}: cannot be read as a bench's file ({reason})") from None


def check_report(path: Path) -> None:
    """Raise `UserError` where the tables or the page cannot be written."""
    if path.is_dir():
        raise UserError(f"--report {path}: is a folder. Name a file")
    if path.suffix == ".html":
        make_folder("--report", path.parent)
    elif not path.exists():
        raise UserError(
            f"--report {path}: there is no such file. Name a page that ends in .html, which is "
            "made, or a markdown file with the two marks"
        )
    else:
        try:
            path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            reason = kind_and_first_line(error)
            raise UserError(f"--report {path}: cannot be read as text ({reason})") from None


def check_tasks(tasks: Iterable[str]) -> None:
    """Refuse tasks of which every cell would fail.

    Args:
        tasks: names, each with its scale after a colon or without.

    Raises:
        UserError: a task has no data of its own, or is not one for the model that all cells adapt.
    """
    import hydra

    from dynarank.config.folders import conf_folder
    from dynarank.config.schema import register_schemas

    register_schemas()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        for name in dict.fromkeys(task.partition(":")[0] for task in tasks):
            task = hydra.compose("train", overrides=[f"task={name}"]).task
            if task.path is None:
                raise UserError(
                    f"--tasks: {name} has no data of its own, and a bench takes no files. Name "
                    "tasks that have, as sst2 or cola"
                )
            if KIND not in task.architectures:
                fitting: Sequence[str] = task.architectures
                raise UserError(
                    f"--tasks: {name} fits {' and '.join(fitting)} models, and the bench adapts an "
                    f"{KIND}. Name tasks of text classification, as sst2 or cola"
                )
