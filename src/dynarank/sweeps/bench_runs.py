"""Run a bench's cells, each in a fresh process, and write down what they found.

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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event

from dynarank import __version__
from dynarank.config.command_line import quote
from dynarank.run_folder import HISTORY, is_finished, read_ranks, read_record, selected_score
from dynarank.sweeps.bench import ARMS, SEEDS, Cell, read_cells, same_run
from dynarank.sweeps.bench_claims import Claims
from dynarank.sweeps.bench_sources import given_ranks, write_names
from dynarank.sweeps.bench_tuning import pending
from dynarank.sweeps.point import sigterm_forwarded
from dynarank.sweeps.preloaded import Process, start_forked, start_server

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
"""How often a worker asks again, where others run what its next cell waits for."""


def run_bench(
    file: Path,
    tasks: Sequence[str],
    budgets: Sequence[float],
    arms: Sequence[str],
    most: int | None = None,
    workers: int = 1,
    seeds: Sequence[int] = SEEDS,
) -> int:
    """Run what the file lacks; return how many cells were run.

    Other processes may do the same with the same file at the same time.

    Args:
        file: the csv of cells.
        tasks: of the plan, in the order in which they are wanted.
        budgets: likewise.
        arms: likewise.
        most: how many cells to run at most; None for all.
        workers: how many cells to run side by side, each on one thread.
        seeds: those that arms are compared on.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the runs at work have ended then.
    """
    environment = single_threaded()
    start_server(environment)
    work = _Work(file, lambda cells: pending(cells, tasks, budgets, arms, seeds), most)
    with sigterm_forwarded(), ThreadPoolExecutor(workers) as pool:
        try:
            running = [pool.submit(work.run, environment) for _ in range(workers)]
            return sum(future.result() for future in running)
        except BaseException:
            work.stop.set()  # Ctrl-C and SIGTERM come to this thread alone
            raise


def single_threaded() -> dict[str, str]:
    """Return the variables that a cell's process sees."""
    # More threads would also change the last bits of sums, which `repeat_cells` compares.
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class _Work:
    """What the workers of one process share.

    Args:
        file: the csv of cells.
        plan: returns the cells that can be run, in order, from those that are done.
        most: how many to run at most, all workers together; None for all.
    """

    def __init__(
        self, file: Path, plan: Callable[[list[Cell]], Iterator[Cell]], most: int | None
    ) -> None:
        self.stop = Event()
        self._file = file
        self._claims = Claims(file)
        self._plan = plan
        self._left = math.inf if most is None else most

    def run(self, environment: dict[str, str]) -> int:
        """Run cells until none is left; return how many."""
        count = 0
        while not self.stop.is_set():
            cell, more = self._next()
            if cell is None and not more:
                break
            if cell is None:  # others run what the next cells wait for
                self.stop.wait(POLL_SECONDS)  # a stop ends it early
                continue
            try:
                result = same_run(cell, read_cells(self._file))
                if result is None:
                    result = run_cell(cell, environment, self._file, partial(self._tick, cell))
                self._claims.finish(result)
            except BaseException:
                self.stop.set()  # the other workers would run on until the end
                raise
            finally:
                self._claims.release(cell)  # of a run that was broken off
            count += 1
            log.info("%s", describe(result))
        return count

    def _next(self) -> tuple[Cell | None, bool]:
        """Return a claimed cell, or None; and whether any is left, claimed by others maybe."""
        with self._claims.locked() as cells:
            wanted = list(self._plan(cells))
            if self._left <= 0 or not wanted:
                return None, False
            cell = self._claims.take(wanted)
            if cell is not None:
                # The file's lock keeps the other workers of this process out, too.
                self._left -= 1
            return cell, True

    def _tick(self, cell: Cell) -> bool:
        """Keep a claim alive; return whether its run is to go on."""
        self._claims.touch(cell)
        return not self.stop.is_set()


@dataclass(frozen=True)
class Repetition:
    """A cell of the file, and what it found when it was run again."""

    before: Cell
    again: Cell

    @property
    def equal(self) -> bool:
        """Whether scores, losses, parameters and ranks are the same to the last bit."""
        return all(
            getattr(self.before, name) == getattr(self.again, name)
            for name in ("score", "loss", "parameters", "components", "ranks")
        )


def repeat_cells(file: Path, count: int) -> list[Repetition]:
    """Run cells of the file again, and return both; the file stays as it is.

    Args:
        file: the csv of cells.
        count: how many, spread over the file from its first to its last.
    """
    done = []
    for cell in read_cells(file):
        # Of an arm that this version has no more, nobody knows the settings.
        if cell.arm in ARMS and not math.isnan(cell.score):
            done.append(cell)
    count = min(count, len(done))
    last = len(done) - 1
    steps = max(1, count - 1)
    places = [round(number * last / steps) for number in range(count)]
    environment = single_threaded()
    start_server(environment)
    found = []
    for place in places:
        before = done[place]
        # Without the figures, so that none of them can pass for one that was found again.
        plan = Cell(before.arm, before.task, before.budget, before.seed, before.lr)
        repetition = Repetition(before, run_cell(plan, environment, file))
        found.append(repetition)
        verdict = "equal" if repetition.equal else "NOT equal"
        log.info("%s: %s; then %s", verdict, describe(repetition.again), describe(before))
    return found


def describe(cell: Cell) -> str:
    """Return a cell in a line."""
    return (
        f"{cell.task} r{cell.budget:g} {cell.arm} seed {cell.seed} lr {cell.lr:g}: "
        f"{cell.metric} {cell.score:.4f}, loss {cell.loss:.4f}, {cell.parameters:,} parameters, "
        f"{cell.seconds:.0f} s"
    )


def run_cell(
    cell: Cell,
    environment: dict[str, str],
    file: Path,
    goes_on: Callable[[], bool] = lambda: True,
) -> Cell:
    """Run a cell in a folder that is removed, and return it with what it found.

    Args:
        cell: what to run.
        environment: the variables that its process sees.
        file: the csv of cells, which holds the ranks that the cell is given, if it is given any.
        goes_on: asked every second; where it says no, the run is ended and nothing returned.

    Raises:
        InterruptedError: the run was to end.
    """
    with tempfile.TemporaryDirectory(prefix="dynarank-bench-") as name:
        folder = Path(name) / "run"
        output = Path(name) / "output.txt"
        # A forked command opens the file, and does not make it.
        output.touch()
        command = [
            sys.executable,
            "-m",
            "dynarank",
            "train",
            *cell.overrides(given_ranks(file, cell, Path(name))),
            f"hydra.run.dir={quote(str(folder))}",
        ]
        process = start_forked(command, output, Path(name), environment)
        if process is None:
            with output.open("ab") as stream:
                process = subprocess.Popen(
                    command, stdout=stream, stderr=stream, cwd=name, env=environment
                )
        try:
            _wait(process, goes_on)
        except BaseException:
            process.terminate()
            process.wait()  # its folder is removed next
            raise
        # An exit code of 0 does not say that there are results: see `Job.run`.
        if not is_finished(folder):
            last = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            log.warning("failed: %s", last[-1] if last else "no output")
            # A failed cell is written down, too, so that it is not tried for ever.
            return replace(cell, commit=revision())
        write_names(file, list(read_ranks(folder)))
        return _finished(cell, folder)


def _wait(process: Process, goes_on: Callable[[], bool]) -> None:
    while True:
        try:
            process.wait(timeout=1)
            return
        except subprocess.TimeoutExpired:
            if not goes_on():
                raise InterruptedError("the bench is stopped") from None


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
            if row.get("val/loss"):  # empty in the rows of training steps
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
