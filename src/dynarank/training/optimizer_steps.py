"""Whether the optimizer really took a step in the present batch: asked often, answered here."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.hooks import RemovableHandle


class OptimizerSteps:
    """Know whether the present batch ended in an update of the weights.

    A batch that only accumulates gradients ends in none. Neither does one whose step a loss scaler
    skips, because a gradient overflowed. PyTorch calls the hook only after a step that was taken.

    `FineTuning` owns the one object of a run. The rank allocation, the weight average and the
    learning rate's schedule read `taken` between the optimizer and the next batch.
    """

    def __init__(self) -> None:
        self.taken = False
        """Whether the optimizer has taken a step since the batch began."""
        self.lr = 0.0
        """The learning rate of the last step that was taken: that of the first group."""
        self._hook: RemovableHandle | None = None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Watch an optimizer from now on."""
        self.detach()
        self._hook = optimizer.register_step_post_hook(self._note_step)

    def detach(self) -> None:
        """Watch no optimizer any more."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self.taken = False

    def begin_batch(self) -> None:
        """Forget the step of the batch before."""
        self.taken = False

    def _note_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.taken = True
        # The scheduler moves the rate on before anyone else looks.
        self.lr = float(optimizer.param_groups[0]["lr"])
