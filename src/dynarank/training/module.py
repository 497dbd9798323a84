"""The LightningModule: it hosts the adapted model, and says what the loss, the metrics and the optimizer are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from dynarank.checkpoints.compact import compact, expand
from dynarank.config.schema import OptimizerConfig
from dynarank.errors import UserError
from dynarank.methods.base import Method
from dynarank.tasks.base import Batch, Scores, Task
from dynarank.training.averaging import WeightAverage
from dynarank.training.distributed import (
    ShardFrozen,
    average_gradients,
    shard_frozen,
    weighted_mean,
)
from dynarank.training.nonfinite import NonFiniteError, Watch, first_in_backward
from dynarank.training.optimizer import build_optimizer
from dynarank.training.rank_allocation import RankAllocation

log = logging.getLogger(__name__)

SELECTION = "selection"
"""The logged score that picks the best epoch: the task's metric at budget, NaN (which never wins) before."""
PROGRESS_SECONDS = 30.0
STATES = {
    "state_dict",
    "optimizer_states",
    "lr_schedulers",
    "loops",
    "callbacks",
    "TaskData",
    "history",
    "rest",
}
"""What a checkpoint holds."""
SKIPS = 50
"""Steps that a loss scaler may skip one after another: scaled down 2^50 times, no gradient overflows any more."""


class FineTuning(LightningModule):
    """A task, a method and an adapted model. T = `total_steps` is resolved by the caller, once, from the data.

    The rank allocation is attached through `configure_callbacks`, so that no trainer can forget it.
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
        self.model, self.task, self.method = model, task, method
        self.optimizer_config, self.lr, self.total_steps = optimizer, lr, total_steps
        allocator = method.allocator(total_steps)
        self.allocation = None if allocator is None else RankAllocation(allocator)
        self.average = None if ema is None else WeightAverage(ema)
        self.training_pass: Callable[..., Any] = model.__call__
        self.scores = nn.ModuleList(task.scores(split) for split in task.validation)
        self.history: list[dict[str, float]] = []
        self.blocks: Sequence[str] = getattr(method.model, "_no_split_modules", None) or ()
        self._sharded = False
        self.watch = Watch()
        self.skipped = 0
        self.updated = False
        """Whether the present batch ended in an update: not where it only accumulates, or a loss scaler skips the step."""

    @property
    def at_budget(self) -> bool:
        """Whether the ranks are final: only then may an epoch be selected."""
        return self.allocation is None or self.allocation.allocator.frozen

    def configure_callbacks(self) -> list[Callback]:
        return [callback for callback in (self.allocation, self.average) if callback is not None]

    def compile_training_pass(self) -> None:
        """Compile the pass and not the model, whose parts and names stay as they are; for any batch and length at once."""
        from torch.fx.experimental import _config

        model = self.model
        _config.use_duck_shape = (
            False  # else a first batch as long as it has rows would be taken for square for good
        )
        self.training_pass = torch.compile(lambda **inputs: model(**inputs), dynamic=True)

    def configure_optimizers(self) -> Any:
        return build_optimizer(
            self.model, self.optimizer_config, self.lr, self.total_steps, self.method.lr_ratios()
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.updated = False
        inputs = self.task.inputs(batch)
        loss: Tensor = self.training_pass(**inputs).loss
        mean = loss.detach()
        if self.trainer.world_size > 1:
            loss, mean = weighted_mean(loss, self.task.loss_terms(batch))
        size = self.task.batch_size(batch)
        self.log("train/loss", mean, prog_bar=True, batch_size=size)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=size)
        if self.allocation is not None:
            with torch.autocast(self.device.type, enabled=False):
                penalty = self.method.penalty(self.at_budget)
            # Also when there is none: Lightning repeats a value no longer logged until the epoch's end.
            self.log(
                f"train/{self.method.penalty_name}",
                0.0 if penalty is None else penalty.detach(),
                batch_size=size,
            )
            loss, mean = (
                (loss, mean) if penalty is None else (loss + penalty, mean + penalty.detach())
            )
        self.watch.see(mean, inputs)
        return loss * self._window_scale(batch_idx)

    def _window_scale(self, batch_idx: int) -> float:
        """What makes the loss of a short last window the mean of its batches: Lightning divides it as a full one's."""
        full, batches = self.trainer.accumulate_grad_batches, int(self.trainer.num_training_batches)
        return 1.0 if batch_idx < batches - batches % full else full / (batches % full)

    def on_train_start(self) -> None:
        self.trainer.optimizers[0].register_step_post_hook(self._note_update)

    def _note_update(self, *_: Any) -> None:
        self.updated = True

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and stop where the loss or the gradient is not finite: the norm says, which is the same on all ranks."""
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if gradient_clip_val is None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        else:
            norm = torch.nn.utils.clip_grad_norm_(trained, gradient_clip_val)
        scaled = (
            getattr(self.trainer.precision_plugin, "scaler", None) is not None
        )  # which skips such steps itself
        with self.trainer.precision_plugin.forward_context():
            self.watch.check(self.trainer.global_step + 1, self.model, None if scaled else norm)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """A step that a loss scaler skipped is none: not for the rate, and not for `global_step`."""
        if self.updated:
            self.skipped = 0
            scheduler.step()
            return
        self.skipped += 1
        if self.skipped == SKIPS:
            where = first_in_backward(self.model) or "no parameter"
            what = f"the loss scaler skipped {SKIPS} steps in a row, and halved its scale each time; not finite: {where}"
            raise NonFiniteError(self.trainer.global_step, what)
        progress = (
            self.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
        )
        for count in (progress.total, progress.current):
            count.ready, count.completed = count.ready - 1, count.completed - 1

    def configure_model(self) -> None:
        """Under FSDP2, shard the frozen parameters, once."""
        if isinstance(self.trainer.strategy, ShardFrozen) and not self._sharded:
            shard_frozen(
                self.model, self.blocks, self.trainer.strategy.device_mesh["data_parallel"]
            )
            self._sharded = True

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self._sharded:
            average_gradients(
                [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            )

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss = self.task.score(self.model, batch, self.scores[dataloader_idx])
        label = self._label(dataloader_idx)
        size = self.task.batch_size(batch)
        self.log(
            f"val/{label}loss", loss, batch_size=size, add_dataloader_idx=False, sync_dist=True
        )
        self._say_progress(batch_idx, dataloader_idx)

    def on_validation_epoch_start(self) -> None:
        self._said = time.monotonic()
        for collected in self.scores:  # not at the end: the last predictions are a run's to write
            cast("Scores", collected).reset()

    def on_validation_epoch_end(self) -> None:
        scores: dict[str, float] = {}
        for index, collected in enumerate(self.scores):
            found = cast("Scores", collected).compute()
            scores.update(
                {self._label(index) + name: float(value) for name, value in found.items()}
            )
        chosen = scores[self.task.config.select]
        for name, value in scores.items():
            self.log(f"val/{name}", value, prog_bar=name == self.task.config.select)
        self.log(SELECTION, chosen if self.at_budget else float("nan"))
        if self.trainer.state.fn == "fit":
            self.history.append(
                {"step": self.trainer.global_step, "epoch": self.current_epoch + 1, **scores}
            )
            self._say(scores)

    def _label(self, index: int) -> str:
        return self.task.config.split_label(self.task.config.splits[index])

    def _say_progress(self, batch_idx: int, dataloader_idx: int) -> None:
        """A line every half minute of a long validation, for logs; a terminal has its bar."""
        if time.monotonic() - self._said > PROGRESS_SECONDS:
            self._said = time.monotonic()
            log.info(
                "validation: batch %d of %s",
                batch_idx + 1,
                self.trainer.num_val_batches[dataloader_idx],
            )

    def _say(self, scores: Mapping[str, float]) -> None:
        parts = [f"step {self.trainer.global_step}/{self.total_steps}"]
        parts += [f"{name} {value:.4f}" for name, value in scores.items()]
        if self.allocation is not None:
            parts.append(self.allocation.status())
        log.info("  ".join(parts))

    def trained_state(self) -> dict[str, Tensor]:
        """The trained parameters and the masks by name: all that a checkpoint needs beside the base model."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = self.state_dict()
        return {name: state[name] for name in state if name in trained or name.endswith(".mask")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.trained_state()
        checkpoint["total_steps"] = self.total_steps
        checkpoint["history"] = self.history
        if self.at_budget:
            names = {parameter: name for name, parameter in self.named_parameters()}
            groups = self.trainer.optimizers[0].param_groups
            compact(
                checkpoint, [names[parameter] for group in groups for parameter in group["params"]]
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning loads what it finds, and is silent about what is missing. Raises `UserError` where anything is."""
        where = self.trainer.ckpt_path
        missing = STATES - checkpoint.keys()
        if self.allocation is not None and self.allocation.state_key not in checkpoint.get(
            "callbacks", {}
        ):
            missing.add("the allocator's scores")
        if missing:
            raise UserError(
                f"{where}: lacks {min(missing)}, so the run cannot go on from it. Take another checkpoint"
            )
        expand(checkpoint)
        if wrong := self.unlike(checkpoint["state_dict"]):
            raise UserError(f"{where}: is of another model: {wrong}")
        self.history = checkpoint["history"]

    def unlike(self, state: Mapping[str, Tensor]) -> str | None:
        """The first difference in names and shapes between a `trained_state` and this module's, in words."""
        mine = {name: list(tensor.shape) for name, tensor in self.trained_state().items()}
        theirs = {name: list(tensor.shape) for name, tensor in state.items()}
        differing = sorted(
            name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)
        )
        if not differing:
            return None
        first = differing[0]
        return f"{first} was {theirs.get(first, 'not there')}, is {mine.get(first, 'not there')} ({len(differing)} differ)"
