"""The LightningModule: it hosts the adapted model, and says what the loss, the metrics and the optimizer are."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from dynarank.errors import UserError
from dynarank.methods.base import Method
from dynarank.tasks.base import Batch, Scores, Task
from dynarank.training.config import OptimizerConfig
from dynarank.training.distributed import ShardFrozen, average_gradients, shard_frozen, weighted_mean
from dynarank.training.nonfinite import NonFiniteError, first_nonfinite
from dynarank.training.optimizer import build_optimizer
from dynarank.training.rank_allocation import RankAllocation

log = logging.getLogger(__name__)

SELECTION = "selection"
"""The logged score that picks the best epoch: the task's metric at budget, NaN (which never wins) before."""
PROGRESS_SECONDS = 30.0
STATES = {"state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "TaskData", "history", "rest"}
"""What a checkpoint holds."""


class FineTuning(LightningModule):
    """A task, a method and an adapted model. T = `total_steps` is resolved by the caller, once, from the data.

    The rank allocation is attached through `configure_callbacks`, so that no trainer can forget it.
    """

    def __init__(
        self, model: nn.Module, task: Task[Any], method: Method[Any], optimizer: OptimizerConfig, lr: float, total_steps: int
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold the trained part only
        self.model, self.task, self.method = model, task, method
        self.optimizer_config, self.lr, self.total_steps = optimizer, lr, total_steps
        allocator = method.allocator(total_steps)
        self.allocation = None if allocator is None else RankAllocation(allocator)
        self.scores = nn.ModuleList(task.scores(split) for split in task.validation)
        self.history: list[dict[str, float]] = []
        self.blocks: Sequence[str] = getattr(method.model, "_no_split_modules", None) or ()
        self._sharded = False

    @property
    def at_budget(self) -> bool:
        """Whether the ranks are final: only then may an epoch be selected."""
        return self.allocation is None or self.allocation.allocator.frozen

    def configure_callbacks(self) -> list[Callback]:
        return [] if self.allocation is None else [self.allocation]

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.model, self.optimizer_config, self.lr, self.total_steps, self.method.lr_ratios())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs = self.task.inputs(batch)
        loss: Tensor = self.model(**inputs).loss
        mean = loss.detach()
        if self.trainer.world_size > 1:
            loss, mean = weighted_mean(loss, self.task.loss_terms(batch))
        size = len(batch["input_ids"])
        self.log("train/loss", mean, prog_bar=True, batch_size=size)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=size)
        if self.allocation is not None:
            penalty = self.method.penalty(self.at_budget)
            # Also when there is none: Lightning repeats a value no longer logged until the epoch's end.
            self.log(f"train/{self.method.penalty_name}", 0.0 if penalty is None else penalty.detach(), batch_size=size)
            loss, mean = (loss, mean) if penalty is None else (loss + penalty, mean + penalty.detach())
        if not bool(torch.isfinite(mean)):  # the same on all ranks, so that all stop
            where = first_nonfinite(self.model, inputs) or "the loss itself"
            raise NonFiniteError(self.trainer.global_step + 1, f"the loss is {float(mean):g}; first at {where}")
        return loss

    def configure_model(self) -> None:
        """Under FSDP2, shard the frozen parameters, once."""
        if isinstance(self.trainer.strategy, ShardFrozen) and not self._sharded:
            shard_frozen(self.model, self.blocks, self.trainer.strategy.device_mesh["data_parallel"])
            self._sharded = True

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self._sharded:
            average_gradients([parameter for parameter in self.model.parameters() if parameter.requires_grad])

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss = self.task.score(self.model, batch, self.scores[dataloader_idx])
        label = self._label(dataloader_idx)
        size = len(batch["input_ids"])
        self.log(f"val/{label}loss", loss, batch_size=size, add_dataloader_idx=False, sync_dist=True)
        self._say_progress(batch_idx, dataloader_idx)

    def on_validation_epoch_start(self) -> None:
        self._said = time.monotonic()
        for collected in self.scores:  # not at the end: the last predictions are a run's to write
            cast("Scores", collected).reset()

    def on_validation_epoch_end(self) -> None:
        scores: dict[str, float] = {}
        for index, collected in enumerate(self.scores):
            found = cast("Scores", collected).compute()
            scores.update({self._label(index) + name: float(value) for name, value in found.items()})
        chosen = scores[self.task.config.select]
        for name, value in scores.items():
            self.log(f"val/{name}", value, prog_bar=name == self.task.config.select)
        self.log(SELECTION, chosen if self.at_budget else float("nan"))
        if self.trainer.state.fn == "fit":
            self.history.append({"step": self.trainer.global_step, "epoch": self.current_epoch + 1, **scores})
            self._say(scores)

    def _label(self, index: int) -> str:
        return self.task.config.split_label(self.task.config.splits[index])

    def _say_progress(self, batch_idx: int, dataloader_idx: int) -> None:
        """A line every half minute of a long validation, for logs; a terminal has its bar."""
        if time.monotonic() - self._said > PROGRESS_SECONDS:
            self._said = time.monotonic()
            log.info("validation: batch %d of %s", batch_idx + 1, self.trainer.num_val_batches[dataloader_idx])

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning loads what it finds, and is silent about what is missing. Raises `UserError` where anything is."""
        where = self.trainer.ckpt_path
        missing = STATES - checkpoint.keys()
        if self.allocation is not None and self.allocation.state_key not in checkpoint.get("callbacks", {}):
            missing.add("the allocator's scores")
        if missing:
            raise UserError(f"{where}: lacks {min(missing)}, so the run cannot go on from it. Take another checkpoint")
        if wrong := self.unlike(checkpoint["state_dict"]):
            raise UserError(f"{where}: is of another model: {wrong}")
        self.history = checkpoint["history"]

    def unlike(self, state: Mapping[str, Tensor]) -> str | None:
        """The first difference in names and shapes between a `trained_state` and this module's, in words."""
        mine = {name: list(tensor.shape) for name, tensor in self.trained_state().items()}
        theirs = {name: list(tensor.shape) for name, tensor in state.items()}
        differing = sorted(name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name))
        if not differing:
            return None
        first = differing[0]
        return f"{first} was {theirs.get(first, 'not there')}, is {mine.get(first, 'not there')} ({len(differing)} differ)"
