"""Let an optimizer's own steps drive an allocator, so that a plain loop cannot forget it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynarank.allocation.dem import add_dem_gradient

if TYPE_CHECKING:
    from dynarank.allocation.allocator import RankAllocator


class Attachment:
    """The hooks that drive an allocator from an optimizer. `remove()` takes them away."""

    def __init__(
        self, allocator: RankAllocator, optimizer: torch.optim.Optimizer, eta: float
    ) -> None:
        self.allocator = allocator
        self.eta = eta
        self.penalty: Tensor | None = None
        """R of Eq. 10 at the last optimizer step, where eta is above 0."""
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def remove(self) -> None:
        """Take the hooks away. The allocator keeps its state."""
        for handle in self._handles:
            handle.remove()

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self.allocator.frozen:
            self.penalty = None
            return
        # A loss scaler leaves the unscaling to fused optimizers, and tells them its factor.
        scale = getattr(optimizer, "grad_scale", None)
        self.allocator.observe(scale)  # before DEM's gradient is among them
        if self.eta == 0:
            return
        self.penalty = add_dem_gradient(self.allocator.layers, self.eta, grad_scale=scale)

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # A loss scaler does not call other optimizers for a step that it skips. Fused ones it
        # calls, and tells them that a gradient is infinite.
        infinite = getattr(optimizer, "found_inf", None)
        if infinite is None or not bool(infinite):
            self.allocator.step()
