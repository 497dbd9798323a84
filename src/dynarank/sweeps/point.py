"""A point of a sweep: a run's folder, and the plain command that fills it, in its own process.

This module imports nothing heavy, because launchers load it on the machine where the run is.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from dynarank.run_folder import (
    ERROR,
    METRICS,
    OUTPUT,
    RUNNING,
    failure_reason,
    is_finished,
    read_failure,
    read_overrides,
    read_record,
    selected_score,
    write_failure,
)
from dynarank.sweeps.liveness import HEARTBEAT, is_alive, process_facts
from dynarank.sweeps.preloaded import Process

Starter = Callable[[Sequence[str], Path, Path, Mapping[str, str]], Process | None]
"""Starts a command: its words, the file that takes its output, its folder, all its variables."""
POINT = "DYNARANK_SWEEP_POINT"
"""An environment variable that is set in the processes of a sweep."""
RESUME, START_OVER = "resume.path=auto", "resume.path=never"


@dataclass(frozen=True)
class Point:
    """A run of a sweep."""

    number: int
    folder: Path
    overrides: list[str]

    @property
    def begun(self) -> bool:
        """Whether its folder holds a run of these very overrides, finished or not."""
        recorded = read_overrides(self.folder)
        return recorded is not None and _identifying(recorded) == _identifying(self.overrides)

    @property
    def finished(self) -> bool:
        """Whether that run has come to its end."""
        return is_finished(self.folder) and self.begun

    @property
    def score(self) -> float:
        """The selecting metric of a finished run; NaN where it is undefined."""
        return selected_score(read_record(self.folder))

    def status(self) -> str:
        """Return done, running, failed or missing."""
        if self.finished:
            return "done"
        if is_alive(self.folder / RUNNING):
            return "running"
        return "failed" if (self.folder / ERROR).is_file() else "missing"

    def record_failure(self, reason: str, lines: Sequence[str] = ()) -> None:
        """Write why there is no finished run, with the last lines of its output."""
        write_failure(self.folder, reason, lines)

    def failure(self) -> str:
        """Return why there is no finished run, in a line."""
        lines = read_failure(self.folder)
        return "it has not run" if lines is None else failure_reason(lines)

    def outcome(self) -> str:
        """Return how the run ended: its score with the metric's name, or why it failed."""
        if not self.finished:
            return f"failed: {self.failure()}"
        metric = read_record(self.folder)["selected"]["metric"]
        return f"{metric} {self.score:.4f}"


def _identifying(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that tell one run from another, sorted."""
    # How a run is started or carried on does not make it another one.
    passing = ("sweep.", "resume.")
    return sorted(text for text in overrides if not text.lstrip("+").startswith(passing))


_running: list[Process] = []
"""The runs' processes that this process waits for, in whatever thread."""
_stopping: list[bool] = []
"""Not empty while a sweep is being stopped: a run that starts now is terminated at once."""


class SweepTerminated(KeyboardInterrupt):
    """SIGTERM came to the process that runs a sweep. It ends as Ctrl-C does, with its own code."""

    code = 128 + signal.SIGTERM


@contextmanager
def sigterm_forwarded() -> Iterator[None]:
    """Forward SIGTERM to the runs that this process waits for, and raise `SweepTerminated` once.

    The runs save and end. A second SIGTERM reaches them too, and has them end at once.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows no other thread
        yield
        return

    def forward(number: int, frame: FrameType | None) -> None:
        first = not _stopping
        _stopping.append(True)
        # A copy, because the threads that wait for the runs change the list.
        for process in list(_running):
            process.send_signal(number)
        # A second one would break off the wait for the runs' ends, which the first began.
        if first:
            raise SweepTerminated

    before = signal.signal(signal.SIGTERM, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _stopping.clear()


@dataclass(frozen=True)
class Job:
    """What fills a point's folder. It is plain data, so that it can be sent to another machine."""

    point: Point
    command: list[str]
    directory: Path
    """Where the command runs."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of the process that runs it."""

    def run(
        self,
        environment: Mapping[str, str] | None = None,
        rank: int = 0,
        ignored: Collection[signal.Signals] = (),
        start: Starter | None = None,
    ) -> int:
        """Run the command to its end, and leave its output and outcome in the folder.

        Args:
            environment: added to the job's own.
            rank: of this process among several of one run; only rank 0 records the outcome.
            ignored: signals that do not reach the command, so that each can be forwarded once.
            start: starts the command in a quicker way; where it returns None, or is not given,
                the command starts as any other does.

        Returns:
            the command's exit code.
        """
        folder = self.point.folder
        folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            # An earlier command's files would be taken for this one's end.
            for stale in (ERROR, METRICS):
                (folder / stale).unlink(missing_ok=True)
        output = folder / (f"output-rank{rank}.txt" if rank else OUTPUT)
        # A forked command opens the file, and does not make it.
        output.write_bytes(b"")
        variables = self.variables(environment)
        process = None
        if start is not None:
            process = start(self.command, output, self.directory, variables)
        if process is None:
            process = self._popen(output, variables, ignored)
        record = folder / RUNNING if rank == 0 else None
        code = _wait(process, record)
        # A process may end with 0 and have no results, as Lightning's does at SIGTERM.
        if rank == 0 and (code or not self.point.finished):
            lines = output.read_text(errors="replace").splitlines()
            self.point.record_failure(f"exit code {code}", lines)
        return code

    def variables(self, environment: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return all variables that the command sees."""
        return {**os.environ, **self.environment, **(environment or {}), POINT: "1"}

    def _popen(
        self, output: Path, variables: Mapping[str, str], ignored: Collection[signal.Signals]
    ) -> Process:
        """Start the command as any other."""

        def ignore_signals() -> None:
            for number in ignored:
                # Of a process's handlers, only those that ignore outlive the start of a program.
                signal.signal(number, signal.SIG_IGN)

        with output.open("w") as file:
            return subprocess.Popen(
                self.command,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=variables,
                preexec_fn=ignore_signals if ignored else None,  # unsafe beside threads
            )

    def resumed(self) -> Job:
        """Return the job that goes on from the run's newest checkpoint."""
        command = [word for word in self.command if not word.startswith("resume.path=")]
        return replace(self, command=[*command, RESUME])

    def stop(self) -> None:
        """Have the command save and end, by SIGUSR1, and wait for its end.

        Call it in the process that is in `run`. Nothing happens before the command has started or
        once it is over.
        """
        try:
            process = int(json.loads((self.point.folder / RUNNING).read_text())["pid"])
            os.kill(process, signal.SIGUSR1)
            # `run` was interrupted for this and holds the lock that Popen.wait needs, so the
            # process is left to be waited for by it.
            os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        except (OSError, ValueError, KeyError):
            return


def _wait(process: Process, record: Path | None) -> int:
    """Wait for a process, and keep a record of it fresh meanwhile.

    The process does not outlive this function: where the wait is cancelled, it is terminated.
    Meanwhile SIGTERM is forwarded to it (`sigterm_forwarded`).

    Args:
        process: the run's.
        record: running.json, removed in the end; None for no record.

    Returns:
        the exit code.
    """
    try:
        _running.append(process)
        # Looked at after the append: a SIGTERM before it finds nothing to forward to.
        if _stopping:
            process.terminate()
        if record is not None:
            content: dict[str, Any] = {"pid": process.pid, "host": socket.gethostname()}
            facts = process_facts(process.pid)
            if facts is not None:
                content["started"] = facts.started
            record.write_text(json.dumps(content))
        while True:
            try:
                return process.wait(HEARTBEAT)
            except subprocess.TimeoutExpired:
                if record is not None:
                    record.touch()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        _running.remove(process)
        if record is not None:
            record.unlink(missing_ok=True)
