"""The W&B tracker: opened beside the training, and never a reason for a run to end.

W&B takes a second to open where all is well, and a minute and a half where its server cannot be
reached. A thread opens it meanwhile; what is logged before that waits in a list. Where it cannot be
opened online, it is kept offline. Where that fails too, or logging fails later, the run goes on
without it, and says so once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger

log = logging.getLogger(__name__)

STEP = "trainer/global_step"
"""The metric that W&B draws the others over: optimizer steps."""
PATIENCE = 5.0
"""Seconds that a run which is stopped waits for W&B to open."""


class WandbTracker(Logger):
    """Hands metrics and pictures to a W&B run as soon as there is one.

    Args:
        open_run: opens W&B's run in a mode, and returns it. It is called in a thread.
        mode: the mode to try first.
    """

    def __init__(self, open_run: Callable[[str], Any], mode: str) -> None:
        super().__init__()
        self._waiting: list[Callable[[Any], None]] = []
        self._run: Any = None
        self._failed = False
        # A daemon, so that a process which ends does not wait for a silent server.
        self._thread = threading.Thread(target=self._open, args=(open_run, mode), daemon=True)
        self._thread.start()

    def _open(self, open_run: Callable[[str], Any], mode: str) -> None:
        modes = [mode, "offline"] if mode == "online" else [mode]
        for attempt in modes:
            try:
                self._run = open_run(attempt)
                return
            # Of any kind, for nobody else looks at what is raised in a thread. Signals come to
            # the main thread alone.
            except BaseException as error:
                self._warn(f"W&B does not open {attempt}", error)
        self._failed = True

    @staticmethod
    def _warn(what: str, error: BaseException) -> None:
        lines = str(error).splitlines() or [type(error).__name__]
        log.warning("%s (%s); the run goes on", what, lines[0])

    @property
    def name(self) -> str:
        """Return the tracker's name."""
        return "wandb"

    @property
    def version(self) -> str | None:
        """Return the W&B run's id, None before it is open."""
        return None if self._run is None else str(self._run.id)

    def log_hyperparams(self, params: Any, *arguments: Any, **named: Any) -> None:
        """Do nothing: the run's configuration was given when it was opened."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values at an optimizer step."""
        # Not as W&B's own step, which may only rise: a resumed run begins again at its checkpoint.
        record = dict(metrics) if step is None else {**metrics, STEP: step}
        self._do(lambda run: run.log(record))

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log pictures at an optimizer step."""

        def log_pictures(run: Any) -> None:
            import wandb

            record: dict[str, Any] = {key: [wandb.Image(image) for image in images]}
            run.log(record if step is None else {**record, STEP: step})

        self._do(log_pictures)

    def finalize(self, status: str) -> None:
        """Hand over what waits; a run that was stopped waits for W&B a little."""
        if status != "success":
            self._thread.join(PATIENCE)
        self._hand_over()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Leave the final numbers and close the W&B run, so that the process can open another."""
        # As long as it takes: the run's own files are all written by now.
        self._thread.join()
        self._do(lambda run: run.summary.update(dict(summary)))
        self._do(lambda run: run.finish())

    def _do(self, action: Callable[[Any], None]) -> None:
        self._waiting.append(action)
        self._hand_over()

    def _hand_over(self) -> None:
        # Until the thread has ended, the W&B run is its own.
        if self._thread.is_alive():
            return
        waiting, self._waiting = self._waiting, []
        for action in waiting:
            if self._failed:
                return
            try:
                action(self._run)
            except Exception as error:
                self._failed = True
                self._warn("W&B does not take what is logged", error)
