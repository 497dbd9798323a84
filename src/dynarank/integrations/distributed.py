"""One decision for all processes that train one model."""

from __future__ import annotations

import torch
from torch import Tensor


def choose_as_first(keep: Tensor) -> Tensor:
    """Return the first process's choice of components, (n) bool, on every process."""
    chosen = keep.to(torch.uint8)
    torch.distributed.broadcast(chosen, src=0)
    return chosen.bool()


def world_size() -> int:
    """Return the number of processes that train together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1
