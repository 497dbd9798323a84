"""Schemas of the allocation: types, ranges, and the meaning of each field.

This module imports nothing heavy, so that a command's help appears at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dynarank.allocation.schedule import SHAPES

UNITS = ("components", "parameters")
SCORES = ("relative", "absolute", "sensitivity")


@dataclass
class BudgetConfig:
    """How many components the model may keep, and when they go (Eq. 9)."""

    target: int = 2
    """Mean number of components a layer keeps at the end."""
    init: int | None = None
    """Components a layer starts with; null: ceil(1.5 x target), as in the paper."""
    warmup: float = 0.15
    """Share of the optimizer steps before the first pruning."""
    final: float = 0.5
    """Share of the optimizer steps after the last pruning, with the ranks frozen."""
    interval: int = 100
    """Optimizer steps from one pruning to the next."""
    regrow: bool = True
    """Whether a pruned component may return before the freeze (the paper's gentle pruning)."""
    schedule: str = "cubic"
    """How the budget falls: cubic (the paper's, slow first), cubic_adalora (fast first), linear,
    or step (all at once)."""
    unit: str = "components"
    """What is counted: components, or parameters (a component of a wide matrix costs more)."""
    min_rank: int = 0
    """Components that every layer keeps at least."""

    def __post_init__(self) -> None:
        self._check_ranks()
        self._check_spans()
        if self.schedule not in SHAPES:
            raise ValueError(
                f"budget.schedule = {self.schedule!r}: must be one of {', '.join(SHAPES)}"
            )
        if self.unit not in UNITS:
            raise ValueError(f"budget.unit = {self.unit!r}: must be one of {', '.join(UNITS)}")

    def _check_ranks(self) -> None:
        if self.target < 1:
            raise ValueError(
                f"budget.target = {self.target}: "
                "a run keeps at least 1 component a layer on average"
            )
        if self.init is not None and self.init < self.target:
            raise ValueError(
                f"budget.init = {self.init} is below budget.target = {self.target}: "
                f"pruning only takes away. Set budget.init to {self.target} (no pruning) or more, "
                f"or to null for {self._default_init()}"
            )
        if not 0 <= self.min_rank <= self.target:
            raise ValueError(
                f"budget.min_rank = {self.min_rank}: must be 0 to budget.target = {self.target}, "
                "the mean rank there is for"
            )

    def _check_spans(self) -> None:
        for field in ("warmup", "final"):
            share = getattr(self, field)
            if not 0 <= share < 1:
                raise ValueError(
                    f"budget.{field} = {share}: a share of the steps, from 0 to below 1"
                )
        total = self.warmup + self.final
        if total >= 1:
            raise ValueError(
                f"budget.warmup + budget.final = {self.warmup} + {self.final} = {total:g}: "
                "must be below 1, so that steps are left to prune in"
            )
        if self.interval < 1:
            raise ValueError(f"budget.interval = {self.interval}: at least 1 step")

    @property
    def initial(self) -> int:
        """The number of components a layer starts with, also where `init` is null."""
        return self._default_init() if self.init is None else self.init

    def _default_init(self) -> int:
        return math.ceil(1.5 * self.target)


@dataclass
class DemConfig:
    """The Dimensional Equilibrium Modulator's weight in the loss."""

    eta: float = 0.1
    """loss = task loss + eta R (Eq. 10) until the freeze; the authors' code halves R, so that its
    0.1 is 0.05 here."""

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"dem.eta = {self.eta}: must be 0 (off) or more, and finite")
