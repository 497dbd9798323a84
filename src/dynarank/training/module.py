"""The LightningModule: it hosts the adapted model, its loss, its metrics and its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from dynarank.config.schema import OptimizerConfig
from dynarank.methods.base import Method
from dynarank.tasks.base import Batch, Task
from dynarank.training.averaging import WeightAverage, trained_parameters
from dynarank.training.distributed import (
    ShardFrozen,
    average_gradients,
    shard_frozen,
    weighted_mean,
)
from dynarank.training.library_internals import (
    compile_for_any_length,
    has_loss_scaler,
    is_log_step,
    sharding_blocks,
    uncount_step,
    window_scale,
)
from dynarank.training.loss_scaling import SkippedSteps
from dynarank.training.nonfinite import FiniteCheck
from dynarank.training.optimizer import build_optimizer, clip_gradient
from dynarank.training.optimizer_steps import OptimizerSteps
from dynarank.training.rank_allocation import RankAllocation
from dynarank.training.split_scores import COLLAPSED, PLACE, SELECTION, SplitScores
from dynarank.training.validation_lines import ValidationLines, log_scores
from dynarank.training.window_loss import WindowLoss


class FineTuning(LightningModule):
    """A task, a method and an adapted model, with what trains them.

    The rank allocation is attached through `configure_callbacks`, so that no trainer can forget it.
    The parts of a training step stand here in the order in which a step calls them; the package's
    docstring (`dynarank.training`) tells the step as a whole.

    Args:
        model: the adapted model, as `method.adapt` returned it.
        task: what computes inputs, losses and scores.
        method: what adapted the model.
        optimizer: the optimizer's settings.
        lr: the learning rate after the warm-up.
        total_steps: T, resolved by the caller, once, from the data.
        ema: the decay of the weights' moving average; None for no average.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task[Any],
        method: Method[Any],
        optimizer: OptimizerConfig,
        lr: float,
        total_steps: int,
        ema: float | None = None,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold the trained part only
        self.model = model
        self.task = task
        self.method = method
        self.optimizer_config = optimizer
        self.lr = lr
        self.total_steps = total_steps
        self.steps = OptimizerSteps()
        allocator = method.allocator(total_steps)
        self.allocation = None if allocator is None else RankAllocation(allocator, self.steps)
        self.average = None if ema is None else WeightAverage(ema, self.steps)
        # A method: the module itself would be registered, and saved, under a second name.
        self.training_pass: Callable[..., Any] = model.__call__  # compile_training_pass replaces it
        self.scores = SplitScores(task, task.validation)
        self.test_scores = SplitScores(task, task.test)
        self.history: list[dict[str, float]] = []
        """The scores of every validation within `fit`, with their step and epoch."""
        self.collapsed: str | None = None
        """The one prediction of all rows of a split at the last validation, in words, if any."""
        self.blocks: Sequence[str] = sharding_blocks(method.model)
        self.finite_check = FiniteCheck()
        self.skipped_steps = SkippedSteps()
        self.window_loss = WindowLoss()
        self._sharded = False
        self._figures: dict[str, Tensor | float] = {}
        self._lines = ValidationLines()

    @property
    def at_budget(self) -> bool:
        """Whether the ranks are final: only then may an epoch be selected."""
        return self.allocation is None or self.allocation.allocator.frozen

    @property
    def epoch(self) -> float:
        """The epoch's number, from 1; after training, that of the last one."""
        if self.trainer.state.fn == "fit":
            return float(self.current_epoch + 1)
        return float(max(1, self.current_epoch))  # Lightning has counted the last one already

    # --- set up, once ---

    def configure_callbacks(self) -> list[Callback]:
        """Return the finite check, the rank allocation and the average, in this order.

        The average takes in the weights once they are pruned.
        """
        own = (self.finite_check, self.allocation, self.average)
        return [callback for callback in own if callback is not None]

    def configure_model(self) -> None:
        """Shard the frozen parameters under FSDP2, once."""
        if isinstance(self.trainer.strategy, ShardFrozen) and not self._sharded:
            mesh = self.trainer.strategy.device_mesh["data_parallel"]
            shard_frozen(self.model, self.blocks, mesh)
            self._sharded = True  # Lightning calls the hook again for `validate` and `test`

    def configure_optimizers(self) -> Any:
        """Return AdamW and its schedule over T steps."""
        return build_optimizer(
            self.model,
            self.optimizer_config,
            self.lr,
            self.total_steps,
            self.method.all_lr_ratios(self.lr, self.optimizer_config.head_lr),
            fused=not has_loss_scaler(self),
            factor=self.method.rate_factor(self.total_steps),
            steady=self.method.head_parameters(),
        )

    def compile_training_pass(self) -> None:
        """Compile the forward pass of training, for batches of any size and length.

        The pass is compiled and not the model, whose parts and names stay as they are.
        """
        model = self.model
        compile_for_any_length()
        self.training_pass = torch.compile(lambda **inputs: model(**inputs), dynamic=True)

    def on_train_start(self) -> None:
        """Watch the optimizer's steps."""
        self.steps.attach(self.trainer.optimizers[0])

    def on_train_end(self) -> None:
        """Watch them no more."""
        self.steps.detach()

    # --- a training step, in the order of the calls ---

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return what is differentiated for a batch: the task's loss.

        The method's penalty is added to it, unless its gradient is added once a step instead.
        """
        self.steps.begin_batch()
        inputs = self.task.inputs(batch)
        loss: Tensor = self.training_pass(**inputs).loss
        mean = loss.detach()
        if self.trainer.world_size > 1:
            loss, mean = weighted_mean(loss, self.task.loss_terms(batch))
        size = self.task.batch_size(batch)
        accumulate = self.trainer.accumulate_grad_batches
        of_step = self.window_loss.mean_with(mean, batch_idx, accumulate)
        # In every step, because the bar reads it whenever it draws.
        self.log("train/loss", of_step, batch_size=size)
        self._figures = {"train/lr": self.trainer.optimizers[0].param_groups[0]["lr"]}
        penalty = None if self.method.closed_form_penalty else self._penalty()
        if penalty is not None:
            loss = loss + penalty
            mean = mean + penalty.detach()
        self.finite_check.add(mean, inputs)  # with the penalty, which the logged loss lacks
        return loss * window_scale(self.trainer, batch_idx)

    def _penalty(self) -> Tensor | None:
        """Return what the method adds to the loss, a float32 scalar, or None for nothing."""
        if self.allocation is None:
            return None
        with torch.autocast(self.device.type, enabled=False):  # 16 bits are too few here
            penalty = self.method.penalty(self.at_budget)
        self._note_penalty(penalty)
        return penalty

    def _note_penalty(self, penalty: Tensor | None) -> None:
        """Keep the penalty for the log; zero for none, as Lightning repeats what is not logged."""
        logged = 0.0 if penalty is None else penalty.detach()
        self._figures[f"train/{self.method.penalty_name}"] = logged

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Average the gradients of what FSDP2 was told to leave whole."""
        if self._sharded:
            average_gradients(list(trained_parameters(self.model).values()))

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Add the penalty's gradient, clip, and stop where the gradient or the loss is not finite.

        The norm tells whether the gradient is finite, and is the same on all ranks.

        Raises:
            NonFiniteError: a loss of the window or the gradient is not finite.
        """
        self.method.observe_gradients()  # first, for scores are of the task's gradient, unclipped
        if self.method.closed_form_penalty:
            self._note_penalty(self.method.add_penalty_gradient(self.at_budget))
        norm = clip_gradient(optimizer, gradient_clip_val)  # Lightning's own returns no norm
        step = self.trainer.global_step + 1
        with self.trainer.precision_plugin.forward_context():  # a failed check runs the model
            # A loss scaler looks at the gradients itself, and skips a step where they overflow.
            checked = None if has_loss_scaler(self) else norm
            self.finite_check.check(step, self.model, checked, self.trainer.optimizers[0])

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step the learning rate's schedule, where the optimizer took a step.

        A step that a loss scaler skipped is none: not for the rate, and not for `global_step`.

        Raises:
            NonFiniteError: the scaler has skipped `MAX_SKIPPED_STEPS` in a row.
        """
        if self.steps.taken:
            self.skipped_steps.end()
            scheduler.step()
            return
        # Lightning calls this at a window's end alone: a step not taken is one that was skipped.
        self.skipped_steps.add(self.model, self.trainer.global_step)
        uncount_step(self.trainer)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log what is of interest every `log_every` steps only, after the Callbacks have acted."""
        if is_log_step(self.trainer):
            self._log_place()
            for name, value in self._figures.items():
                self.log(name, value)

    def _log_place(self) -> None:
        """Log where in the training a row stands, for all loggers."""
        for name, value in zip(PLACE, (self.epoch, self.trainer.global_step), strict=True):
            self.log(name, float(value))  # Lightning takes a "step" that is logged for its own

    # --- validation ---

    def on_validation_epoch_start(self) -> None:
        """Forget the predictions of the last validation.

        They are not forgotten at its end, because the run writes them when training is over.
        """
        self._lines.begin()
        self.scores.reset()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect a batch's predictions and log its loss."""
        loss = self.task.score(self.model, batch, self.scores[dataloader_idx])
        label = self.scores.labels[dataloader_idx]
        # Of language models a batch's loss is a mean over tokens, and so is that of a split.
        terms = int(self.task.loss_terms(batch))
        # Each rank has other rows. The scores come from the predictions of all ranks already.
        self.log(
            f"val/{label}loss", loss, batch_size=terms, add_dataloader_idx=False, sync_dist=True
        )
        self._lines.log_progress(batch_idx + 1, self.trainer.num_val_batches[dataloader_idx])

    def on_validation_epoch_end(self) -> None:
        """Compute and log the scores, and the one that picks the best epoch."""
        scores = self.scores.compute()
        selecting = self.task.config.select
        for name, value in scores.items():
            self.log(f"val/{name}", value)
        self.collapsed = self.scores.collapsed()
        self.log(COLLAPSED, float(self.collapsed is not None))
        self._log_place()
        selection = scores[selecting] if self.at_budget else float("nan")
        self.log(SELECTION, selection)
        if self.trainer.state.fn == "fit":  # `finish` validates too
            step = self.trainer.global_step
            self.history.append({"step": step, "epoch": int(self.epoch), **scores})
            status = None if self.allocation is None else self.allocation.status()
            log_scores(step, self.total_steps, scores, status, self.collapsed)

    # --- the test rows, once, after training ---

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect a batch's predictions."""
        self.task.score(self.model, batch, self.test_scores[0])

    def on_test_epoch_end(self) -> None:
        """Compute and log the scores."""
        for name, value in self.test_scores.compute().items():
            self.log(f"test/{name}", value)
        self._log_place()
