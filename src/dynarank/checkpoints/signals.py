"""SIGTERM, SIGUSR1 and Ctrl-C: a flag that training looks at between two steps, and an end that loses nothing."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from dynarank.errors import Interrupted

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Signals:
    """Context in which signals end the run in order.

    While `deferred` is true, the first one is only noted in `received`; otherwise, and at the second, `Interrupted` is
    raised on the spot.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.deferred = False
        self._before: dict[signal.Signals, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Signals:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        return self

    def install(self) -> None:
        """Take the signals; again, once Lightning has put its own handlers in their place."""
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Python allows no other thread to
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if (
            os.getpid() != self._process
        ):  # a worker process, which has inherited this: it ends when training does
            return
        again, self.received = self.received is not None, signal.Signals(number)
        if again or not self.deferred:
            raise Interrupted(self.received)
        log.warning("%s: saving at the next step (once more stops at once)", self.received.name)


def leave_signals_to_training(worker: int) -> None:
    """In a worker process that makes batches: a signal to all processes of a job must not kill it before the save."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
