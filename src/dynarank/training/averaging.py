"""The Callback that averages the trained weights over the steps.

The average stands in the weights' place where a model is judged or kept. Lightning's own Callback
averages the whole model, frozen base and boolean masks too, and saves all of it. This one holds
what trains.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from dynarank.adapters.cutting import Cuts, cut_tensors
from dynarank.training.optimizer_steps import OptimizerSteps


class WeightAverage(Callback):
    """An exponential moving average of the trained weights, in float32, over real updates.

        average := d average + (1 - d) weight,  d = min(decay, (1 + n) / (10 + n))

    at the n-th update, n from 0, so that the start is forgotten in short runs too. Where a weight
    is exactly zero, so is its average: pruned components are zero, and the averaged model keeps as
    many components as the model. Validation within `fit` sees the average. Checkpoints hold both.

    Attach it after the Callback that prunes.
    """

    def __init__(self, decay: float, steps: OptimizerSteps) -> None:
        self.decay = decay
        self.steps = steps
        self.updates = 0
        self.average: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights, or with the average that a checkpoint held."""
        # Not in `__init__`: only here are the weights on their device, and a checkpoint loaded.
        averages = {}
        for name, weight in trained_parameters(pl_module).items():
            start = self.average.get(name, weight.detach())
            # A copy, because a detached weight shares the weight's memory. A checkpoint's average
            # lies on the CPU.
            averages[name] = start.to(weight.device, copy=True)
        self.average = averages

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Take the updated weights into the average."""
        if not self.steps.taken:
            return
        # The bound of the first steps is that of TensorFlow's ExponentialMovingAverage.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, weight in trained_parameters(pl_module).items():
            average = self.average[name]
            average.lerp_(weight, 1 - decay)
            average.masked_fill_(weight == 0, 0)  # a pruned component is pruned in the average

    def cut(self, cuts: Cuts) -> None:
        """Cut the average as its weights were cut; of a layer of rank 0 nothing is left."""
        averages = cut_tensors(self.average, cuts)
        self.average = {name: value for name, value in averages.items() if value.numel()}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the weights' place for a validation within `fit`."""
        # After training, `apply` or a checkpoint has put an average there for good.
        if trainer.state.fn == "fit":
            self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        if trainer.state.fn == "fit":
            self._swap(pl_module)

    def _swap(self, module: nn.Module) -> None:
        for name, weight in trained_parameters(module).items():
            # The two change places without a copy, and the parameter stays the object that the
            # optimizer and DDP know.
            weight.data, self.average[name] = self.average[name], weight.data

    @torch.no_grad()
    def apply(self, module: nn.Module) -> None:
        """Copy the average over the weights, once training is over."""
        for name, weight in trained_parameters(module).items():
            weight.copy_(self.average[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates; the average itself stands in a checkpoint's own entry."""
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of updates."""
        self.updates = state_dict["updates"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the average into a checkpoint, by parameter name."""
        # An entry of its own, so that `RunContent.load_weights` finds it without this Callback.
        checkpoint["average"] = dict(self.average)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the average from a checkpoint."""
        # It is missing where trainer.ema was set after the run began, by resume.allow_inexact.
        self.average = dict(checkpoint.get("average", {}))


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train, by name."""
    return {
        name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad
    }
