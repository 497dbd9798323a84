"""Run a bench's cells, one after another, each in a fresh process, and write down what they found.

The processes are forks of one that has made the imports, where this machine can have it.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dynarank import __version__
from dynarank.config.command_line import quote
from dynarank.run_folder import HISTORY, is_finished, read_ranks, read_record, selected_score
from dynarank.sweeps.bench import Cell, append_cell, pending, read_cells
from dynarank.sweeps.preloaded import start_forked, start_server

log = logging.getLogger(__name__)


def run_bench(
    file: Path,
    tasks: Sequence[str],
    budgets: Sequence[float],
    arms: Sequence[str],
    most: int | None = None,
) -> int:
    """Run what the file lacks; return how many cells were run.

    Args:
        file: the csv of cells.
        tasks: of the plan, in the order in which they are wanted.
        budgets: likewise.
        arms: likewise.
        most: how many cells to run at most; None for all.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    start_server(environment)
    count = 0
    while most is None or count < most:
        cell = next(pending(read_cells(file), tasks, budgets, arms), None)
        if cell is None:
            break
        result = run_cell(cell, environment)
        append_cell(file, result)
        count += 1
        log.info("%s", describe(result))
    return count


def describe(cell: Cell) -> str:
    """Return a cell in a line."""
    return (
        f"{cell.task} r{cell.budget:g} {cell.arm} seed {cell.seed} lr {cell.lr:g}: "
        f"{cell.metric} {cell.score:.4f}, loss {cell.loss:.4f}, {cell.parameters:,} parameters, "
        f"{cell.seconds:.0f} s"
    )


def run_cell(cell: Cell, environment: dict[str, str]) -> Cell:
    """Run a cell in a folder that is removed, and return it with what it found."""
    with tempfile.TemporaryDirectory(prefix="dynarank-bench-") as name:
        folder = Path(name) / "run"
        output = Path(name) / "output.txt"
        output.touch()
        command = [
            sys.executable,
            "-m",
            "dynarank",
            "train",
            *cell.overrides(),
            f"hydra.run.dir={quote(str(folder))}",
        ]
        process = start_forked(command, output, Path(name), environment)
        if process is None:
            with output.open("ab") as stream:
                process = subprocess.Popen(
                    command, stdout=stream, stderr=stream, cwd=name, env=environment
                )
        try:
            process.wait()
        except BaseException:
            process.terminate()
            raise
        if not is_finished(folder):
            last = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            log.warning("failed: %s", last[-1] if last else "no output")
            return replace(cell, commit=revision())
        return _finished(cell, folder)


def _finished(cell: Cell, folder: Path) -> Cell:
    record = read_record(folder)
    ranks = read_ranks(folder)
    return replace(
        cell,
        metric=str(record["selected"]["metric"]),
        score=selected_score(record),
        loss=_last_loss(folder / HISTORY),
        parameters=int(record["adapter_parameters"]),
        components=int(record["components_kept"]),
        ranks=" ".join(map(str, ranks.values())),
        seconds=float(record["seconds"]),
        commit=revision(),
    )


def _last_loss(history: Path) -> float:
    """Return the last validation's mean loss; NaN where none was written."""
    losses = []
    with history.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row.get("val/loss"):
                losses.append(float(row["val/loss"]))
    return losses[-1] if losses else math.nan


def revision() -> str:
    """Return the commit of the code that runs, or the version where it is no clone."""
    asked = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=10", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or __version__
