"""How far the allocation of a layer's ranks has come, so that an export can be refused in time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass
class AllocationProgress:
    """What an allocator has done so far. All layers of one allocator share one such object."""

    freeze_step: int
    """The optimizer step after which the kept components are final."""
    step: int = 0
    """Optimizer steps that the allocator was told of."""
    frozen: bool = False
    """Whether the kept components are final."""


class HasProgress(Protocol):
    """A layer that may belong to an allocator; `progress` is None where it belongs to none."""

    progress: AllocationProgress | None


def check_at_budget(layers: Iterable[HasProgress]) -> None:
    """Raise `ValueError` where an allocator has these layers, and has not frozen their ranks.

    Such a model holds more components than its budget allows. Layers that no allocator has ever had
    are of a fixed rank, and are accepted.
    """
    for layer in layers:
        progress = layer.progress
        if progress is None or progress.frozen:
            continue
        raise ValueError(
            f"the ranks are not final: the allocator was stepped {progress.step} times, and "
            f"freezes the ranks at step {progress.freeze_step}. Call allocator.step() after every "
            "optimizer step, and give BudgetSchedule(total=...) in optimizer steps, not in "
            "batches. To write a model that is over its budget, pass over_budget=True"
        )
