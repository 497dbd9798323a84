"""Keep what is trained from becoming narrow: in bfloat16, small updates would be rounded away."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Move = Callable[[Tensor], Tensor]
"""What `.to`, `.half`, `.cuda` and their like do to each tensor of a module."""

_ENOUGH = torch.float32.itemsize


def never_narrow(move: Move) -> Move:
    """Return the same move to other devices and wider numbers, which narrow ones leave alone.

    Narrow is what takes less than float32's four bytes.
    """

    def move_but_never_narrow(tensor: Tensor) -> Tensor:
        moved = move(tensor)
        if moved.element_size() < min(tensor.element_size(), _ENOUGH):
            return tensor.to(moved.device)  # the old values, to the bit
        return moved

    return move_but_never_narrow
