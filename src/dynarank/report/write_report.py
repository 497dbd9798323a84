"""A report's folder: report.html, report.md, table.csv, table.tex and the pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dynarank.errors import UserError
from dynarank.report.csv_table import as_csv
from dynarank.report.latex import latex
from dynarank.report.markdown import report_text
from dynarank.report.page import Report, page
from dynarank.report.pictures import draw_pictures
from dynarank.report.runs import Progress, read_runs
from dynarank.report.tables import build_table, find_setting

MOST_NAMED = 3
"""Of more folders than this the page's title names the first."""
Announce = Callable[[str], Progress]
"""What is told that a step begins, and returns what is told how far that step is."""


def write_report(
    folders: Sequence[Path],
    against: str | None = None,
    last: bool = False,
    output: Path | None = None,
    under: int | None = None,
    announce: Announce | None = None,
) -> tuple[str, Path]:
    """Write a report on the runs in the folders; return its text and its folder.

    Raises:
        UserError: there is no finished run, or what was asked for does not fit the runs.
    """
    if under is not None and under < 0:
        raise UserError(f"--under {under}: a number of adapter parameters, 0 or more")
    announce = announce or _announce_nothing
    runs, left_out = read_runs(folders, announce("reading runs"))
    table = build_table(runs, last)
    reference = find_setting(table, against)
    output = output or folders[0] / "report"
    _make_folder(output)
    text = _write(output / "report.md", report_text(table, reference, left_out, under))
    _write(output / "table.csv", as_csv(table))
    _write(output / "table.tex", latex(table))
    pictures = []
    for picture in draw_pictures(table, runs, announce("drawing, task by task")):
        picture.save(output)
        pictures.append(picture)
    content = Report(
        title=_title(folders),
        places=folders,
        # `replace` makes a new table, without the summaries that the first one has kept.
        tables=(table, replace(table, last=not last)),
        reference=reference,
        runs=table.runs(),
        left_out=left_out,
        pictures=pictures,
        under=under,
    )
    done = announce("writing the page")
    _write(output / "report.html", page(content))
    done(1, 1)
    return text, output


def _write(path: Path, text: str) -> str:
    """Write a text as UTF-8, and return what was written.

    Half a surrogate pair, which the name of a folder can hold and UTF-8 cannot, is escaped.
    """
    encoded = text.encode("utf-8", "backslashreplace")
    try:
        path.write_bytes(encoded)
    except OSError as error:
        raise UserError(
            f"{path}: the report cannot be written here ({error.strerror}). "
            "Name another folder: --output DIR"
        ) from None
    return encoded.decode("utf-8")


def _announce_nothing(step: str) -> Progress:
    return lambda done, total: None


def _title(folders: Sequence[Path]) -> str:
    names = [folder.resolve().name for folder in folders]
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    return f"{names[0]} and {len(names) - 1} more folders"


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{output}: the report cannot be written here ({error.strerror}). "
            "Name another folder: --output DIR"
        ) from None
