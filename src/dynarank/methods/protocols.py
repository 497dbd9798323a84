"""What training asks of whatever distributes ranks: `RankAllocator`, and baselines in its form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from dynarank.allocation.schedule import BudgetSchedule


class Allocator(Protocol):
    """What distributes ranks over a run: `RankAllocator`, or a baseline's in the same form."""

    t: int
    sizes: list[int]
    """Components that each layer starts with."""
    schedule: BudgetSchedule
    agree: Callable[[Tensor], Tensor]
    """From the components that this process would keep, (n) bool, to those that all processes
    keep."""

    @property
    def frozen(self) -> bool:
        """Whether the kept components are final."""

    @property
    def ema(self) -> Tensor:
        """Present scores of all components, (n)."""

    def step(self) -> bool:
        """Account for one optimizer step, its gradients in place; return whether it pruned."""

    def budget(self) -> float:
        """Return the scheduled mean number of components a layer, now."""

    def active_count(self) -> Tensor:
        """Return the number of components of the model that are not zero now, a scalar."""

    def ranks(self) -> dict[str, int]:
        """Return ranks by module name, in model order."""

    def allowance(self, t: int) -> int:
        """Return what may be kept after step t: components, or parameters where these count."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of `state_dict`."""


@dataclass(frozen=True, kw_only=True)
class Carry:
    """How what is kept of a parameter follows it where its components were turned."""

    value: Callable[[Tensor], Tensor]
    """For an average of the parameter."""
    first: Callable[[Tensor], Tensor]
    """For Adam's first moment, a mean of gradients."""
    second: Callable[[Tensor], Tensor]
    """For Adam's second moment, a mean of squared gradients."""


# runtime_checkable, for training asks by isinstance: most allocators have neither of these two.
@runtime_checkable
class MovesParameters(Protocol):
    """An allocator that turned parameters when it pruned last."""

    def carried(self) -> dict[Tensor, Carry]:
        """Return, by the turned parameter, how its average and its moments follow."""


@runtime_checkable
class TakesRate(Protocol):
    """An allocator whose steps need the learning rate of the optimizer's."""

    lr: float
    """Set before each `step`."""
