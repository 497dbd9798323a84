"""The Callback that saves a run between two batches, where all of its state is at rest, and puts it back there.

Lightning's loops, the data's position, the random generators, the metrics' history: at the start of a batch, before it is
counted, nothing is half done, so that what is restored there is what was saved there, to the bit. Saves are due after every
validation, every so many steps or minutes, and when a signal came; they wait for the end of an accumulation window.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from dynarank.checkpoints.resume import Resumption, random_state, restore_random_state
from dynarank.checkpoints.signals import Signals
from dynarank.checkpoints.storage import Manifest, checkpoint_path, remove_all_but, seal
from dynarank.config.schema import CheckpointConfig
from dynarank.errors import Interrupted
from dynarank.training.distributed import check_alike
from dynarank.training.module import SELECTION

log = logging.getLogger(__name__)


class Checkpoints(Callback):
    """Saves into `folder`; keeps the last `config.keep` and the best at budget, which it picks.

    Args:
        identity: the run that the checkpoints belong to.
        resumption: where the run goes on from, if it does.
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
        manifest = resumption.manifest if resumption else None
        self.best = manifest.best if manifest else None
        self.inexact = manifest.inexact if manifest else []
        self.resumed_at = [*manifest.resumed_at, manifest.step] if manifest else []
        self._origin = started - (manifest.seconds if manifest else 0.0)
        self._steps = [manifest.step] if manifest else []
        self._saved = time.monotonic()
        self._due = False
        self._pending: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """Of work, over all starts."""
        return time.monotonic() - self._origin

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.install()  # Lightning has taken SIGTERM since, and would end the run, unsaved, with exit code 0
        self.signals.deferred = True
        if trainer.world_size > 1:
            known = json.dumps({**self.identity, "threads": None}, sort_keys=True)
            check_alike(
                int(hashlib.sha256(known.encode()).hexdigest()[:15], 16),
                "settings, data and versions",
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._pending is not None:
            self._restore(trainer)
        if batch_idx % trainer.accumulate_grad_batches:
            return
        stop = self._agreed(trainer, self.signals.received is not None)
        if stop or self._is_due(trainer):
            self.save(trainer)
        if stop:
            raise Interrupted(self._number, f"step {trainer.global_step}")

    def _restore(self, trainer: pl.Trainer) -> None:
        assert self._pending is not None
        restore_random_state(self._pending["random"][trainer.global_rank])
        # Lightning takes a checkpoint for one saved inside a batch, and counts that batch, or a validation, again.
        loop = trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = self._pending["batches_that_stepped"]
        loop.batch_progress.total.ready = loop.batch_progress.total.completed + 1
        loop.val_loop.batch_progress.load_state_dict(self._pending["validation_progress"])
        self._pending = None

    def _is_due(self, trainer: pl.Trainer) -> bool:
        step = trainer.global_step
        if step == 0 or step in self._steps:
            return False
        every = self.config.every_steps
        late = time.monotonic() - self._saved > 60 * self.config.every_minutes
        return self._due or (every is not None and step % every == 0) or self._agreed(trainer, late)

    @staticmethod
    def _agreed(trainer: pl.Trainer, flag: bool) -> bool:
        """Whether it is so on any rank: all answer alike."""
        return (
            trainer.strategy.reduce_boolean_decision(flag, all=False)
            if trainer.world_size > 1
            else flag
        )

    @property
    def _number(self) -> signal.Signals:
        """The signal that came. Where it came to another rank alone, this one ends as if it had been SIGTERM."""
        return self.signals.received or signal.SIGTERM

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        self._due = True
        score = float(trainer.callback_metrics[SELECTION])
        if not math.isnan(score) and (self.best is None or score > self.best["score"]):
            self.best = {
                "score": score,
                "step": trainer.global_step,
                "epoch": trainer.current_epoch + 1,
            }

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer, finished=True)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.deferred = False
        if self._agreed(trainer, self.signals.received is not None):
            raise Interrupted(self._number, f"step {trainer.global_step}")

    def save(self, trainer: pl.Trainer, finished: bool = False) -> None:
        """Write a checkpoint of this moment, make it valid, and remove those no longer kept.

        One that this step has already stays: while it was written anew, there might be no whole one.
        """
        step, path = trainer.global_step, checkpoint_path(self.folder, trainer.global_step)
        if step in self._steps:
            self._due = False
            return
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            seal(path, self._manifest(trainer, finished))
            self._steps = sorted({*self._steps, step})[-self.config.keep :]
            remove_all_but(self.folder, {*self._steps, *([self.best["step"]] if self.best else [])})
        trainer.strategy.barrier()
        self._steps = sorted({*self._steps, step})[-self.config.keep :]
        self._saved, self._due = time.monotonic(), False

    def _manifest(self, trainer: pl.Trainer, finished: bool) -> Manifest:
        return Manifest(
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            finished=finished,
            metrics_rows=written_rows(trainer),
            seconds=round(self.seconds, 1),
            best=self.best,
            identity=self.identity,
            resumed_at=self.resumed_at,
            inexact=self.inexact,
        )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """On every rank: the generators differ from rank to rank."""
        states = [random_state()]
        if trainer.world_size > 1:
            states = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(states, random_state())
        checkpoint["rest"] = {
            "random": states,
            "batches_that_stepped": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "validation_progress": trainer.fit_loop.epoch_loop.val_loop.batch_progress.state_dict(),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._pending = checkpoint["rest"]


def written_rows(trainer: pl.Trainer) -> int:
    """Rows of metrics.csv, once what is not yet written is."""
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger) and logger._experiment is not None:
            logger.save()
            path = Path(logger.experiment.metrics_file_path)
            return len(path.read_text().splitlines()) - 1 if path.is_file() else 0
    return 0
