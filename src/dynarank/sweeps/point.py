"""A point of a sweep: a run's folder, and the plain command that fills it, in a process of its own.

Imports nothing heavy, for launchers load it on the machine where the run is.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

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

log = logging.getLogger(__name__)

POINT = "DYNARANK_SWEEP_POINT"
"""Set in the processes of a sweep."""
RESUME, START_OVER = "resume.path=auto", "resume.path=never"
HEARTBEAT = 30.0
"""Seconds between two touches of running.json, by which other machines know that the run is alive."""


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
        return recorded is not None and _essential(recorded) == _essential(self.overrides)

    @property
    def finished(self) -> bool:
        """Whether that run has come to its end."""
        return is_finished(self.folder) and self.begun

    @property
    def score(self) -> float:
        """The selecting metric. Of a finished run."""
        return selected_score(read_record(self.folder))

    def status(self) -> str:
        """done, running, failed or missing."""
        if self.finished:
            return "done"
        if _alive(self.folder / RUNNING):
            return "running"
        return "failed" if (self.folder / ERROR).is_file() else "missing"

    def fail(self, reason: str, lines: Sequence[str] = ()) -> None:
        """Record why there is no finished run."""
        write_failure(self.folder, reason, lines)

    def failure(self) -> str:
        """Why there is no finished run, in a line."""
        lines = read_failure(self.folder)
        return "it has not run" if lines is None else failure_reason(lines)

    def log_outcome(self) -> None:
        """Say how it ended."""
        if self.finished:
            log.info("#%d done: %.4f", self.number, self.score)
        else:
            log.info("#%d failed: %s", self.number, self.failure())


def _essential(overrides: Sequence[str]) -> list[str]:
    return sorted(one for one in overrides if not one.lstrip("+").startswith(("sweep.", "resume.")))


def _alive(record: Path) -> bool:
    try:
        known = json.loads(record.read_text())
        if known.get("host", socket.gethostname()) != socket.gethostname():
            return time.time() - record.stat().st_mtime < 4 * HEARTBEAT
        os.kill(int(known["pid"]), 0)
        stat = Path(
            f"/proc/{int(known['pid'])}/stat"
        )  # an orphan that has ended may stay as a zombie, in containers
        return not (stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
    except (OSError, ValueError, KeyError):
        return False


@dataclass(frozen=True)
class Job:
    """What fills a point's folder. Plain data, so that it can be sent to another machine."""

    point: Point
    command: list[str]
    directory: Path
    """Where the command runs."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of the process that runs it."""
    shown: str = ""
    """The overrides by which it differs from the others."""

    def run(
        self,
        environment: Mapping[str, str] | None = None,
        rank: int = 0,
        ignored: Collection[signal.Signals] = (),
    ) -> int:
        """Run the command to its end; its output and what becomes of it go to the folder. Returns the exit code.

        `environment` is added to the job's. Of several processes of one run, only rank 0 records. `ignored` signals do not
        reach the command, so that each can be forwarded once.
        """
        folder = self.point.folder
        folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            for stale in (ERROR, METRICS):
                (folder / stale).unlink(missing_ok=True)
        output = folder / (f"output-rank{rank}.txt" if rank else OUTPUT)

        def ignore() -> None:
            for one in ignored:
                signal.signal(one, signal.SIG_IGN)

        with output.open("w") as file:
            process = subprocess.Popen(
                self.command,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={**os.environ, **self.environment, **(environment or {}), POINT: "1"},
                preexec_fn=ignore if ignored else None,
            )
        code = _attend(process, folder / RUNNING if rank == 0 else None)
        if rank == 0 and (code or not self.point.finished):
            self.point.fail(f"exit code {code}", output.read_text(errors="replace").splitlines())
        return code

    def going_on(self) -> Job:
        """The same, from its newest checkpoint on."""
        return replace(
            self,
            command=[*(one for one in self.command if not one.startswith("resume.path=")), RESUME],
        )

    def stop(self) -> None:
        """Have the command save and end, by SIGUSR1, and wait for that. In the process that is in `run`."""
        try:
            process = int(json.loads((self.point.folder / RUNNING).read_text())["pid"])
            os.kill(process, signal.SIGUSR1)
            os.waitid(
                os.P_PID, process, os.WEXITED | os.WNOWAIT
            )  # `run`, interrupted for this, holds Popen's lock
        except (OSError, ValueError, KeyError):
            return  # not started yet, or over


def _attend(process: subprocess.Popen[bytes], record: Path | None) -> int:
    try:
        if record is not None:
            record.write_text(json.dumps({"pid": process.pid, "host": socket.gethostname()}))
        while True:
            try:
                return process.wait(HEARTBEAT)
            except subprocess.TimeoutExpired:
                if record is not None:
                    record.touch()
    finally:  # a launcher's cancellation must not leave the run behind
        if process.poll() is None:
            process.terminate()
            process.wait()
        if record is not None:
            record.unlink(missing_ok=True)
