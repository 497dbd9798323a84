"""The Callback that saves a run between two batches, where all of its state is at rest.

Lightning's loops, the data's position, the random generators, the history: at the start of a batch,
before it is counted, nothing is half done, so that what is restored there is what was saved there,
to the bit. Saves are due after every validation, every so many steps or minutes, and when a signal
came. They wait for the end of an accumulation window.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from dynarank.checkpoints.content import check_finite, history_rows
from dynarank.checkpoints.library_internals import loop_position, restore_loop_position
from dynarank.checkpoints.random_state import random_state, restore_random_state
from dynarank.checkpoints.resume import Resumption
from dynarank.checkpoints.signals import Signals
from dynarank.checkpoints.storage import Manifest, checkpoint_path, remove_all_but, seal
from dynarank.config.schema import CheckpointConfig
from dynarank.errors import Interrupted
from dynarank.training.distributed import check_alike
from dynarank.training.split_scores import SELECTION

REST = "rest"
"""A checkpoint's entry for what this Callback restores."""
SECONDS_A_MINUTE = 60


class Checkpoints(Callback):
    """Save into a folder, and keep the last `config.keep` checkpoints and the best at budget.

    Args:
        folder: where checkpoints are written.
        config: when they are, and how many are kept.
        identity: the run that they belong to.
        signals: which came to this process.
        resumption: the checkpoint that the run goes on from; None for a new run.
        started: when work began, on `time.monotonic`'s clock.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        identity: dict[str, Any],
        signals: Signals,
        resumption: Resumption | None,
        started: float,
    ) -> None:
        self.folder, self.config, self.identity, self.signals = folder, config, identity, signals
        self.best: dict[str, Any] | None = None
        """Score, step and epoch of the best validation at budget so far."""
        self.inexact: list[str] = []
        self.resumed_at: list[int] = []
        self._work_began = started
        self._steps: list[int] = []
        if resumption is not None:
            manifest = resumption.manifest
            self.best, self.inexact = manifest.best, manifest.inexact
            self.resumed_at = [*manifest.resumed_at, manifest.step]
            # As if the work of the earlier starts had come just before this one.
            self._work_began = started - manifest.seconds
            # The checkpoint that the run goes on from lies there already, and is not written again.
            self._steps = [manifest.step]
        self._last_save = time.monotonic()
        self._due = False
        self._to_restore: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """Return the seconds of work, over all starts."""
        return time.monotonic() - self._work_began

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals, and check that all ranks train the same run.

        Lightning has taken SIGTERM since, and would end the run, unsaved, with exit code 0.
        """
        self.signals.install()
        self.signals.deferred = True
        if trainer.world_size > 1:
            # Rank 0 alone counts its threads: launchers give the others fewer.
            shared = json.dumps({**self.identity, "threads": None}, sort_keys=True)
            # Not `hash`, which Python salts for texts. 15 hexadecimal digits fit into 62 bits.
            digest = int(hashlib.sha256(shared.encode()).hexdigest()[:15], 16)
            check_alike(digest, "settings, data and versions")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore what was saved here, or save where it is time. Raises `Interrupted`."""
        # Not before: what Lightning sets up until the first batch may draw random numbers.
        if self._to_restore is not None:
            states = self._to_restore["random"]
            # With more devices than before, the new ranks draw from the seeds they began with.
            if trainer.global_rank < len(states):
                restore_random_state(states[trainer.global_rank])
            restore_loop_position(trainer, self._to_restore)
            self._to_restore = None
        # Inside a window there are gradients of its first batches, which no checkpoint holds.
        if batch_idx % trainer.accumulate_grad_batches:
            return
        stop = self._on_any_rank(trainer, self.signals.received is not None)
        if stop or self._is_due(trainer):
            self.save(trainer)
        if stop:
            raise Interrupted(self._signal, f"step {trainer.global_step}")

    def _is_due(self, trainer: pl.Trainer) -> bool:
        step = trainer.global_step
        # A step comes again after a resume, and where a loss scaler skipped the next one.
        if step == 0 or step in self._steps:
            return False
        if self._due:
            return True
        every = self.config.every_steps
        if every is not None and step % every == 0:
            return True
        # The ranks' clocks differ, so they have to agree. All else above is alike on all of them.
        waited = time.monotonic() - self._last_save
        return self._on_any_rank(trainer, waited > SECONDS_A_MINUTE * self.config.every_minutes)

    @staticmethod
    def _on_any_rank(trainer: pl.Trainer, flag: bool) -> bool:
        """Return whether a flag is up on any rank; all ranks get the same answer."""
        if trainer.world_size == 1:
            return flag
        return trainer.strategy.reduce_boolean_decision(flag, all=False)

    @property
    def _signal(self) -> signal.Signals:
        """Return the signal that came; SIGTERM where it came to another rank alone."""
        return self.signals.received or signal.SIGTERM

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the validation's score where it is the best, and that a save is due."""
        # After training, `finish` validates too, and nothing may be saved or picked by that.
        if trainer.state.fn != "fit":
            return
        self._due = True
        score = float(trainer.callback_metrics[SELECTION])
        if math.isnan(score):
            return
        if self.best is None or score > self.best["score"]:
            epoch = trainer.current_epoch + 1
            self.best = {"score": score, "step": trainer.global_step, "epoch": epoch}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of training."""
        # No batch follows whose start would save the last step.
        self.save(trainer, finished=True)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End here where a signal came. Raises `Interrupted`."""
        # From here on nobody looks at the flag, so a signal has to end the run on the spot.
        self.signals.deferred = False
        # A signal in the last step had no next batch to act on it.
        if self._on_any_rank(trainer, self.signals.received is not None):
            raise Interrupted(self._signal, f"step {trainer.global_step}")

    def save(self, trainer: pl.Trainer, finished: bool = False) -> None:
        """Write a checkpoint of this moment, make it valid, and remove those no longer kept.

        One that this step has already stays as it is: while it was written anew, there might be no
        whole one.

        Raises:
            NonFiniteError: a value that would be saved is not finite.
            UserError: the checkpoint cannot be written.
        """
        step = trainer.global_step
        if step in self._steps:
            self._due = False
            return
        check_finite(trainer)  # before the earlier checkpoints go
        path = checkpoint_path(self.folder, step)
        trainer.save_checkpoint(path)  # on all ranks, whose generators go into it
        kept = sorted({*self._steps, step})[-self.config.keep :]
        if trainer.is_global_zero:
            seal(path, self._manifest(trainer, finished))
            best = set() if self.best is None else {self.best["step"]}
            remove_all_but(self.folder, {*kept, *best})
        # No rank goes on, or ends, before rank 0 has made the checkpoint valid.
        trainer.strategy.barrier()
        # On all ranks, though rank 0 alone removes: they have to agree on when a save is due.
        self._steps = kept
        self._last_save = time.monotonic()
        self._due = False

    def _manifest(self, trainer: pl.Trainer, finished: bool) -> Manifest:
        return Manifest(
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            finished=finished,
            metrics_rows=history_rows(trainer),
            seconds=round(self.seconds, 1),
            best=self.best,
            identity=self.identity,
            resumed_at=self.resumed_at,
            inexact=self.inexact,
        )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the generators of all ranks, which differ, and the loops' position."""
        states = [random_state()]
        if trainer.world_size > 1:
            states = [{} for _ in range(trainer.world_size)]
            # Lightning calls this on all ranks, though rank 0 alone writes.
            torch.distributed.all_gather_object(states, random_state())
        checkpoint[REST] = {"random": states, **loop_position(trainer)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what the first batch's start restores."""
        self._to_restore = checkpoint[REST]
