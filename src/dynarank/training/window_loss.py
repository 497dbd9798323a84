"""The loss of an optimizer step: the mean over the batches of its accumulation window."""

from __future__ import annotations

import torch
from torch import Tensor


class WindowLoss:
    """Keeps the losses of the window so far on their device, so that nothing waits for it."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def mean_with(self, loss: Tensor, batch_idx: int, accumulate: int) -> Tensor:
        """Return the mean over the window's batches so far.

        Args:
            loss: of the present batch, a scalar without gradient.
            batch_idx: the batch's number in the epoch, from 0.
            accumulate: batches of a window.
        """
        if accumulate == 1:
            return loss
        if batch_idx % accumulate == 0:
            self._losses = []
        self._losses.append(loss)
        return torch.stack(self._losses).mean()
