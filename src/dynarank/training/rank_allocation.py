"""The Callback that owns the allocator: after every optimizer step it updates, prunes and logs.

It is thin: what is decided, and when, is the allocator's (`dynarank.allocation`).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from dynarank.errors import UserError
from dynarank.methods.protocols import Allocator, MovesParameters, TakesRate
from dynarank.training.carrying import carry_over
from dynarank.training.cut import cut_run
from dynarank.training.distributed import (
    check_alike,
    choose_as_rank_zero,
    copy_rank_zero,
)
from dynarank.training.library_internals import ends_last_epoch, is_log_step
from dynarank.training.nonfinite import NonFiniteError
from dynarank.training.optimizer_steps import OptimizerSteps
from dynarank.training.rank_map import draw_rank_map, place

log = logging.getLogger(__name__)

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles of the scores that are logged."""


class RankAllocation(Callback):
    """Drives an allocator from a Lightning training loop.

    It acts on `on_train_batch_end`, and only where `steps` says that the optimizer took a step:
    after the update, and before validation and checkpoints see the model.
    """

    def __init__(self, allocator: Allocator, steps: OptimizerSteps) -> None:
        self.allocator = allocator
        self.steps = steps
        self.history: list[dict[str, Any]] = []
        """The ranks after each pruning: {"step": t, "ranks": rank by module name}."""
        self._levels: Tensor | None = None

    def status(self) -> str:
        """Return the budget and the number of nonzero components, in words."""
        allocator = self.allocator
        count = int(allocator.active_count())
        size = sum(allocator.sizes)
        state = "frozen" if allocator.frozen else f"budget {allocator.budget():.2f}"
        return f"{state}, {count} of {size} kept"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have all ranks keep what rank 0 keeps."""
        if trainer.world_size > 1:
            self.allocator.agree = choose_as_rank_zero

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Account for the batch's optimizer step, if it took one, and log."""
        missed = self._misses_its_freeze(trainer)
        if missed:
            self._catch_up(trainer, pl_module)
        if (missed or self.steps.taken) and self._step_allocator(pl_module):
            self._after_pruning(trainer, pl_module)
        if is_log_step(trainer):  # also where a loss scaler skipped the step
            self._log(pl_module)

    def _misses_its_freeze(self, trainer: Trainer) -> bool:
        """Return whether training ends with this batch, and its freeze would come later.

        All epochs together have at least T steps, so that it is only where steps were skipped.
        """
        if self.allocator.frozen or not ends_last_epoch(trainer):
            return False
        return self.allocator.t + self.steps.taken < self.allocator.schedule.freeze_step

    def _catch_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the allocator's next step be that of the freeze, with its scores and its budget."""
        schedule = self.allocator.schedule
        log.warning(
            "the loss scaler of trainer.precision=16-mixed skipped steps: the epochs end after %d "
            "of %d, so that the ranks become final here, and not after step %d",
            trainer.global_step,
            schedule.total,
            schedule.freeze_step,
        )
        self.allocator.t = schedule.freeze_step - 1
        if self.steps.taken:
            return
        # What overflowed is no score. Zeros leave the order of the smoothed scores as it is.
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        pl_module.method.observe_gradients()  # type: ignore[operator, union-attr]

    def _step_allocator(self, pl_module: LightningModule) -> bool:
        """Let the allocator account for one step, and return whether it pruned."""
        if isinstance(self.allocator, TakesRate):
            self.allocator.lr = self.steps.lr
        try:
            return self.allocator.step()
        except FloatingPointError as error:
            if check := getattr(pl_module, "finite_check", None):
                check.settle(pl_module.trainer)  # a loss or a gradient came first, and says more
            raise NonFiniteError(self.allocator.t, str(error)) from error

    def _after_pruning(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ranks = self.allocator.ranks()
        if trainer.world_size > 1:
            # Python salts the hashes of texts, not of numbers: equal ranks hash alike everywhere.
            check_alike(hash(tuple(ranks.values())), f"ranks at step {self.allocator.t}")
        # Before the cut: average and moments still have the shapes that the maps are made for.
        if isinstance(self.allocator, MovesParameters):
            callback = getattr(pl_module, "average", None)
            averages = {} if callback is None else callback.average
            changed = carry_over(pl_module, trainer.optimizers, averages, self.allocator.carried())
            if trainer.world_size > 1:
                copy_rank_zero(changed)  # the signs of singular vectors are nobody's choice
        if self.allocator.frozen:
            cut_run(trainer, pl_module)
        if not ranks:  # a method that cuts weights, not components
            return
        # The allocator's own count runs ahead where the end of training took its freeze's place.
        step = min(self.allocator.t, trainer.global_step)
        self.history.append({"step": step, "ranks": ranks})
        self._draw(trainer, ranks)

    def _log(self, pl_module: LightningModule) -> None:
        """Log the budget, the number of nonzero components and the scores' quantiles."""
        pl_module.log("budget/scheduled", self.allocator.budget())
        pl_module.log("budget/nonzero", self.allocator.active_count().float())
        scores = self.allocator.ema
        # Kept, because to make it anew is a copy to the device in every logged step.
        if self._levels is None or self._levels.device != scores.device:
            self._levels = torch.tensor(QUANTILES, device=scores.device)
        values = torch.quantile(scores, self._levels)
        names = [f"score/q{100 * quantile:02.0f}" for quantile in QUANTILES]
        pl_module.log_dict(dict(zip(names, values, strict=True)))

    def _draw(self, trainer: Trainer, ranks: dict[str, int]) -> None:
        """Draw the rank map for the trackers that show pictures."""
        trackers: list[Any] = [logger for logger in trainer.loggers if hasattr(logger, "log_image")]
        if not trackers:
            return
        figure = draw_rank_map(ranks, self.allocator.sizes[0], f"step {self.allocator.t}")
        for tracker in trackers:
            tracker.log_image("rank_map", [figure], step=trainer.global_step)
            tracker.log_metrics(mean_ranks(ranks), step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the allocator's state and the history, for a checkpoint."""
        return {"allocator": self.allocator.state_dict(), "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state. Raises `UserError` where it is of another allocation."""
        try:
            self.allocator.load_state_dict(state_dict["allocator"])
            self.history = state_dict["history"]
        except (KeyError, ValueError) as error:
            raise UserError(
                f"the checkpoint does not fit this run: {error}. Take another checkpoint"
            ) from None


def mean_ranks(ranks: dict[str, int]) -> dict[str, float]:
    """Return the mean rank of each kind of matrix and of each layer, by the name it is logged as.

    These are numbers for trackers that show no pictures.
    """
    groups: dict[str, list[int]] = {}
    for name, rank in ranks.items():
        where = place(name)
        groups.setdefault(f"rank/matrix/{where.matrix}", []).append(rank)
        groups.setdefault(f"rank/layer/{where.layer:02d}", []).append(rank)
    return {key: sum(values) / len(values) for key, values in groups.items()}
