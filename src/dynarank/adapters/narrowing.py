"""Keep what is trained from becoming narrow: in bfloat16, small updates would be rounded away."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Move = Callable[[Tensor], Tensor]
"""What `.to`, `.half`, `.cuda` and their like do to each tensor of a module."""


def never_narrow(move: Move) -> Move:
    """Return the same move to other devices and wider numbers, which narrower ones leave alone."""

    def move_but_never_narrow(tensor: Tensor) -> Tensor:
        moved = move(tensor)
        if moved.element_size() < tensor.element_size():
            return tensor.to(moved.device)  # the old values, to the bit
        return moved

    return move_but_never_narrow
