"""The LightningModule: it hosts the adapted model, and says what the loss, the metrics and the optimizer are."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection

from dynarank.methods.base import Method
from dynarank.tasks.base import Batch, Task
from dynarank.training.config import OptimizerConfig
from dynarank.training.nonfinite import NonFiniteError, first_nonfinite
from dynarank.training.optimizer import build_optimizer
from dynarank.training.rank_allocation import RankAllocation

log = logging.getLogger(__name__)

SELECTION = "selection"
"""The logged score that picks the best epoch: the task's metric at budget, NaN (which never wins) before."""


class FineTuning(LightningModule):
    """A task, a method and an adapted model. T = `total_steps` is resolved by the caller, once, from the data.

    The rank allocation is attached through `configure_callbacks`, so that no trainer can forget it.
    """

    def __init__(
        self, model: nn.Module, task: Task, method: Method[Any], optimizer: OptimizerConfig, lr: float, total_steps: int
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold the trained part only
        self.model, self.task, self.method = model, task, method
        self.optimizer_config, self.lr, self.total_steps = optimizer, lr, total_steps
        allocator = method.allocator(total_steps)
        self.allocation = None if allocator is None else RankAllocation(allocator)
        self.validation_metrics = nn.ModuleList(task.metrics() for _ in task.validation)
        self.history: list[dict[str, float]] = []

    @property
    def at_budget(self) -> bool:
        """Whether the ranks are final: only then may an epoch be selected."""
        return self.allocation is None or self.allocation.allocator.frozen

    def configure_callbacks(self) -> list[Callback]:
        return [] if self.allocation is None else [self.allocation]

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.model, self.optimizer_config, self.lr, self.total_steps)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        size = len(batch["labels"])
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=size)
        if self.allocation is not None:
            penalty = None if self.at_budget else self.method.penalty()
            # Also when there is none: Lightning repeats a value no longer logged until the epoch's end.
            self.log("train/dem", 0.0 if penalty is None else penalty.detach(), batch_size=size)
            loss = loss if penalty is None else loss + penalty
        if not bool(torch.isfinite(loss)):
            where = first_nonfinite(self.model, batch) or "the loss itself"
            raise NonFiniteError(self.trainer.global_step + 1, f"the loss is {float(loss.detach()):g}; first at {where}")
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        metrics: Any = self.validation_metrics[dataloader_idx]
        loss = self.task.score(self.model, batch, metrics)
        label = self._label(dataloader_idx)
        self.log(f"val/{label}loss", loss, batch_size=len(batch["labels"]), add_dataloader_idx=False)

    def on_validation_epoch_end(self) -> None:
        scores: dict[str, float] = {}
        for index, metrics in enumerate(self.validation_metrics):
            assert isinstance(metrics, MetricCollection)
            scores.update({self._label(index) + name: float(value) for name, value in metrics.compute().items()})
            metrics.reset()
        chosen = scores[self.task.config.select]
        for name, value in scores.items():
            self.log(f"val/{name}", value, prog_bar=name == self.task.config.select)
        self.log(SELECTION, chosen if self.at_budget else float("nan"))
        if self.trainer.state.fn == "fit":
            self.history.append({"step": self.trainer.global_step, "epoch": self.current_epoch + 1, **scores})
            self._say(scores)

    def _label(self, index: int) -> str:
        return self.task.config.split_label(self.task.config.validation_splits[index])

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
        self.history = checkpoint["history"]
