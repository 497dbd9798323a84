"""The bar at the foot of a terminal: where the training is, on one line."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from dynarank.training.module import FineTuning

SECONDS = 0.25
"""Between two drawings: to read a loss waits for the GPU."""
SHORTEST_BAR, LONGEST_BAR = 4, 30
"""Characters of the bar proper."""


class OneLineBar(ProgressBar):
    """Shows step, loss, metric, budget, kept components and the time left on one line.

    What is logged meanwhile appears above it and stays there.

    Args:
        console: where it is drawn; by default on the terminal that standard output is.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self.console = console or Console()
        self._live: Live | None = None
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._drawn = 0.0
        self._begin, self._first_step = 0.0, 0
        self._enabled = True

    def disable(self) -> None:
        """Show nothing, on other ranks than the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the line."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, and have log lines appear above."""
        if not self._enabled:
            return
        self._begin, self._first_step = time.monotonic(), trainer.global_step
        # Without rich's own thread: only the end of a batch changes the line.
        self._live = Live(console=self.console, transient=True, auto_refresh=False)
        self._live.start()
        self._redirect_logs()

    def _redirect_logs(self) -> None:
        """Let handlers that write to the terminal write above the line."""
        above = _AboveTheBar(self.console)
        loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
        for logger in loggers:
            # The dictionary also holds placeholders, which have no handlers.
            for handler in getattr(logger, "handlers", ()):
                # A handler of a file, or of a captured stream, stays as it is.
                stream = getattr(handler, "stream", None)
                if stream in (sys.__stdout__, sys.__stderr__) and stream is not None:
                    self._handlers.append((handler, stream))
                    handler.setStream(above)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Draw the line anew, a few times a second."""
        if self._due():
            self._draw(status_parts(pl_module), trainer.global_step, pl_module.total_steps)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say how far a validation is."""
        if self._due():
            batches = trainer.num_val_batches[dataloader_idx]
            parts = [f"validating {batch_idx + 1}/{batches}", *status_parts(pl_module)[1:]]
            self._draw(parts, trainer.global_step, pl_module.total_steps)

    def _due(self) -> bool:
        return self._live is not None and time.monotonic() - self._drawn > SECONDS

    def _draw(self, parts: Sequence[str], step: int, total: int) -> None:
        assert self._live is not None
        self._drawn = time.monotonic()
        # The steps before a resume took none of this start's time.
        done = step - self._first_step
        left = ""
        if done:
            left = clock((self._drawn - self._begin) / done * (total - step)) + " left"
        width = self.console.width - 1  # A full line would wrap on some terminals.
        line = bar_line([*parts, left], step / max(1, total), width)
        self._live.update(Text(line, no_wrap=True, overflow="crop"), refresh=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the line away."""
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take the line away."""
        self._stop()

    def _stop(self) -> None:
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers = []
        if self._live is not None:
            self._live.stop()
            self._live = None


class _AboveTheBar:
    """A stream whose lines appear above the line at the foot, as long as they are."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def write(self, text: str) -> None:
        # Without markup, because rich would take brackets in a log line for a style.
        self.console.print(text.rstrip("\n"), soft_wrap=True, markup=False, highlight=False)

    def flush(self) -> None:
        self.console.file.flush()


def status_parts(module: FineTuning) -> list[str]:
    """Return what the line says of a training, part by part: the most important first."""
    trainer = module.trainer
    parts = [f"step {trainer.global_step}/{module.total_steps}"]
    loss = trainer.callback_metrics.get("train/loss")
    if loss is not None:
        parts.append(f"loss {float(loss):.4g}")
    metric = module.task.config.select
    if module.history:
        parts.append(f"{metric} {module.history[-1][metric]:.4f}")
    if module.allocation is not None:
        allocator = module.allocation.allocator
        state = "frozen" if allocator.frozen else f"budget {allocator.budget():.2f}"
        parts += [state, f"{int(allocator.active_count())} kept"]
    return parts


def bar_line(parts: Sequence[str], share: float, width: int) -> str:
    """Return a line of at most `width` characters: the first part, a bar, and the others.

    Where there is no room the bar goes first, and then the middle of the parts.

    Args:
        parts: what to say; empty ones are left out.
        share: how much of the bar is full, from 0 to 1.
        width: characters.
    """
    kept = [part for part in parts if part]
    while len(kept) > 2 and len("  ".join(kept)) > width:
        del kept[-2]  # the last part is the time left
    room = min(LONGEST_BAR, width - len("  ".join(kept)) - 2)
    if room >= SHORTEST_BAR:
        full = round(share * room)
        kept.insert(1, "━" * full + "╌" * (room - full))
    return "  ".join(kept)[:width]


def clock(seconds: float) -> str:
    """Return a duration as 0:42, 12:05 or 3:07:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}"
