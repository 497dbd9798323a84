"""SIGTERM, SIGUSR1 and Ctrl-C: a flag that training looks at between two steps.

A run that is told to end loses nothing of what it has trained.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from dynarank.errors import Interrupted

log = logging.getLogger(__name__)


def _signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end a run in order. Windows has no SIGUSR1."""
    # SIGUSR1 is what Slurm sends before a job's time limit (docs/clusters.md).
    names = ("SIGTERM", "SIGUSR1", "SIGINT")
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


SIGNALS = _signals()


class Signals:
    """A context in which signals end the run in order.

    While `deferred` is true, the first signal is only noted in `received`. Otherwise, and at the
    second one, `Interrupted` is raised on the spot.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.deferred = False
        self._handlers_before: dict[signal.Signals, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Signals:
        self._handlers_before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        return self

    def install(self) -> None:
        """Take the signals; call it again where Lightning has put its own handlers in place."""
        if _is_main_thread():
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if _is_main_thread():
            for number, handler in self._handlers_before.items():
                # None is a handler that no Python code has set, and that none can set again.
                if handler is not None:
                    signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker process has inherited this handler; it ends when training does
        is_second = self.received is not None
        self.received = signal.Signals(number)
        if is_second or not self.deferred:
            raise Interrupted(self.received)
        log.warning("%s: saving at the next step (once more stops at once)", self.received.name)


def _is_main_thread() -> bool:
    """Return whether Python lets this thread set handlers."""
    return threading.current_thread() is threading.main_thread()


def prepare_worker(worker: int) -> None:
    """Let a process that makes batches end with the training, and not before.

    A signal to all processes of a job must not kill a worker before the training has saved. A
    training that is killed must not leave workers behind.

    Args:
        worker: its number, which torch gives.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # torch's own watch compares the parent's number: a fork server's, where one starts the workers,
    # lives on.
    threading.Thread(target=_end_with_training, daemon=True).start()


def _end_with_training() -> None:
    training = multiprocessing.parent_process()
    if training is not None:
        # It waits for a pipe whose other end the system closes, however the training ends.
        training.join()
        os._exit(1)  # sys.exit would end this thread alone
