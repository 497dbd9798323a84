"""The Callback that averages the trained weights over the steps, and puts the average where a model is judged or kept.

Lightning's own averages the whole model, frozen base and boolean masks too, and saves all of it. This one holds what trains.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn


class WeightAverage(Callback):
    """An exponential moving average of the trained weights, in float32, over real updates.

        average := d average + (1 - d) weight,  d = min(decay, (1 + n) / (10 + n)) at the n-th update, n from 0

    so that the start is forgotten in short runs too. Where a weight is exactly zero, so is its average: pruned components
    are, and the averaged model keeps as many as the model. Validation within `fit` sees the average; checkpoints hold both.
    Attach it behind what prunes.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.average = {
            name: self.average.get(name, weight.detach()).to(weight.device, copy=True)
            for name, weight in trained(pl_module).items()
        }

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not pl_module.updated:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, weight in trained(pl_module).items():
            self.average[name].lerp_(weight, 1 - decay).masked_fill_(weight == 0, 0)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._swap(pl_module)

    def _swap(self, module: nn.Module) -> None:
        for name, weight in trained(module).items():
            weight.data, self.average[name] = self.average[name], weight.data

    @torch.no_grad()
    def apply(self, module: nn.Module) -> None:
        """Put the average in the weights' place, once training is over."""
        for name, weight in trained(module).items():
            weight.copy_(self.average[name])

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["average"] = dict(self.average)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.average = dict(checkpoint.get("average", {}))


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {
        name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad
    }
