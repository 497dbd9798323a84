"""How far the allocation of a layer's ranks has come, so that an export can be refused in time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor


@dataclass
class AllocationProgress:
    """What an allocator has done so far. All layers of one allocator share one such object."""

    freeze_step: int
    """The optimizer step after which the kept components are final."""
    step: int = 0
    """Optimizer steps that the allocator was told of."""
    frozen: bool = False
    """Whether the kept components are final."""
    kept: int | None = None
    """How many components all layers keep together; None before they are final."""
    copied_from: AllocationProgress | None = field(default=None, repr=False)
    """The progress of the model that this one's model is a copy of; None for no copy."""
    copied_at: int = field(default=0, repr=False)
    """What `step` was when the model was copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> AllocationProgress:
        # `copy.deepcopy` calls it once a copy, so that the copied layers share one progress again.
        return replace(self, copied_from=self, copied_at=self.step)

    def newest(self) -> AllocationProgress:
        """Return the progress that says whether these layers' components are final.

        That is the original's where a copy was never stepped itself. A copy that is made before
        training to hold averages, as AveragedModel is, takes over the masks, and has no allocator.
        """
        if self.copied_from is None or self.frozen or self.step != self.copied_at:
            return self
        return self.copied_from.newest()

    def freeze(self, masks: Iterable[Tensor]) -> None:
        """Make the components that the layers' masks keep, (r) bool each, final."""
        self.frozen = True
        self.kept = sum(int(mask.sum()) for mask in masks)


class HasProgress(Protocol):
    """A layer that may belong to an allocator; `progress` is None where it belongs to none."""

    progress: AllocationProgress | None

    def active(self) -> Tensor:
        """Return which components are not zero, (r) bool."""
        ...


def check_at_budget(layers: Iterable[HasProgress]) -> None:
    """Raise `ValueError` where an allocator has these layers, and they hold more than it froze.

    Such a model holds more components than its budget allows. Layers that no allocator has ever had
    are of a fixed rank, and are accepted.
    """
    # By identity: the layers of one allocator share one progress.
    allocations: dict[int, AllocationProgress] = {}
    held: dict[int, int] = {}
    for layer in layers:
        if layer.progress is None:
            continue
        progress = layer.progress.newest()
        _check_frozen(progress)
        key = id(progress)
        allocations[key] = progress
        held[key] = held.get(key, 0) + int(layer.active().sum())
    for key, progress in allocations.items():
        _check_kept(progress, held[key])


def _check_kept(progress: AllocationProgress, held: int) -> None:
    # Weights from before the freeze may have been loaded since, with all that they hold.
    # Fewer are no fault: some layers alone may be asked for, and a kept c may be zero.
    if progress.kept is not None and held > progress.kept:
        raise ValueError(
            f"the model holds {held} components, and its ranks were frozen with {progress.kept}: "
            "weights from before the freeze were loaded. Load those of the run's end, or of a "
            "checkpoint from after the freeze. To write a model that is over its budget, pass "
            "over_budget=True"
        )


def _check_frozen(progress: AllocationProgress) -> None:
    if not progress.frozen:
        raise ValueError(
            f"the ranks are not final: the allocator was stepped {progress.step} times, and "
            f"freezes the ranks at step {progress.freeze_step}. Call allocator.step() after every "
            "optimizer step, and give BudgetSchedule(total=...) in optimizer steps, not in "
            "batches. To write a model that is over its budget, pass over_budget=True"
        )
