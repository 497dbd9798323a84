"""What a sweep tells while it runs: how many runs are done, what they scored, and the time left."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from dynarank.sweeps.point import Job, Point

log = logging.getLogger(__name__)


class Progress:
    """Counts the runs of a sweep, and logs a line for each that starts or ends.

    Args:
        points: all of the sweep, or of a sampling sweeper's batch.
        unfinished: those that are to be run.
    """

    def __init__(self, points: Sequence[Point], unfinished: Sequence[Point]) -> None:
        self.points = points
        self.total = len(points)
        self.done = len(points) - len(unfinished)
        self.running = 0
        self.failed = 0
        self._ended = 0
        self._begin = time.monotonic()
        self._varying = varying_overrides(points)
        self._lock = threading.Lock()

    def started(self, job: Job, how: str = "starts") -> None:
        """Count a run that starts, and log what it varies."""
        number = job.point.number
        with self._lock:
            self.running += 1
            log.info("#%d %s: %s", number, how, self._varying[number])

    def ended(self, job: Job) -> None:
        """Count a run that ended, and log its outcome, what it varies, and how far the sweep is."""
        number, outcome = job.point.number, job.point.outcome()
        with self._lock:
            self.running -= 1
            self._ended += 1
            if job.point.finished:
                self.done += 1
            else:
                self.failed += 1
            log.info("#%d %s  %s  (%s)", number, outcome, self._varying[number], self.summary())

    def summary(self) -> str:
        """Return how many runs are done, running and failed, and about how long the rest takes."""
        text = f"{self.done} of {self.total} done, {self.running} running, {self.failed} failed"
        left = self.total - self.done - self.failed
        if left and self._ended:
            # Runs that an earlier command finished took none of this one's time.
            seconds = (time.monotonic() - self._begin) / self._ended * left
            text += f", about {format_duration(seconds)} left"
        return text

    def table(self) -> str:
        """Return a line for each run: its number, its outcome and what it varies."""
        lines = [self.summary()]
        for point in self.points:
            lines.append(f"  #{point.number}  {point.outcome()}  {self._varying[point.number]}")
        return "\n".join(lines)


def varying_overrides(points: Sequence[Point]) -> dict[int, str]:
    """Return the overrides by which each point differs from the others, by point number."""
    shared: set[str] = set()
    if len(points) > 1:
        shared = set(points[0].overrides)
        for point in points:
            shared &= set(point.overrides)
    texts = {}
    for point in points:
        varying = [override for override in point.overrides if override not in shared]
        texts[point.number] = " ".join(varying) or "(defaults)"
    return texts


def format_duration(seconds: float) -> str:
    """Return a duration in its largest unit of s, min and h, rounded."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
