"""Schemas of the allocation: types, ranges, and the meaning of each field.

This module imports nothing heavy, so that a command's help appears at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from dynarank.allocation.schedule import SHAPES
from dynarank.settings import Ge, Gt, Lt, OneOf, check_settings

UNITS = ("components", "parameters")
SCORES = ("relative", "absolute", "sensitivity", "fisher", "random")
"""What components may be judged by."""
FIXED = "fixed"
"""The score of an allocator that is given its scores, in place of one of `SCORES`."""


@dataclass
class BudgetConfig:
    """How many components the model may keep, and when they go (Eq. 9)."""

    target: Annotated[int | float, Gt(0)] = 2
    """Mean number of components a layer keeps at the end, a whole number or a fraction: under 0.25
    one matrix in four keeps a component. A model of L layers keeps L x target components in all,
    rounded, halves up."""
    init: Annotated[int | None, Gt(0)] = None
    """Components a layer starts with; null: ceil(1.5 x target), as in the paper, 1 at least."""
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.15
    """Share of the optimizer steps before the first pruning."""
    final: Annotated[float, Ge(0), Lt(1)] = 0.5
    """Share of the optimizer steps after the last pruning, with the ranks frozen."""
    interval: Annotated[int, Gt(0)] = 100
    """Optimizer steps from one pruning to the next."""
    regrow: bool = True
    """Whether a pruned component may return before the freeze (the paper's gentle pruning); one
    whose c is fixed (method.train_c=false) never can."""
    schedule: Annotated[str, OneOf(SHAPES)] = "cubic"
    """How the budget falls: cubic (the paper's, slow first), cubic_adalora (fast first), linear,
    or step (all at once)."""
    unit: Annotated[str, OneOf(UNITS)] = "components"
    """What is counted: components, or parameters (a component of a wide matrix costs more)."""
    min_rank: Annotated[int, Ge(0)] = 0
    """Components that every layer keeps at least."""
    max_rank: Annotated[int | None, Gt(0)] = None
    """Components that a layer keeps at most (vLLM's max_lora_rank, say); null: no limit."""

    def __post_init__(self) -> None:
        check_settings("budget", self)
        if isinstance(self.target, float) and self.target.is_integer():
            self.target = int(self.target)  # so that r2.0 is shown, and compared, as r2
        self._check_ranks()
        self._check_spans()

    def _check_ranks(self) -> None:
        if self.init is not None and self.init < self.target:
            raise ValueError(
                f"budget.init = {self.init} is below budget.target = {self.target}: "
                f"pruning only takes away. Set budget.init to {math.ceil(self.target)} or more, "
                f"or to null for {self._default_init()}"
            )
        if self.min_rank > self.target:
            raise ValueError(
                f"budget.min_rank = {self.min_rank}: must be 0 to budget.target = {self.target}, "
                "the mean rank there is for"
            )
        if self.max_rank is not None and self.max_rank < self.target:
            raise ValueError(
                f"budget.max_rank = {self.max_rank}: is below budget.target = {self.target}, the "
                "mean rank. Set it to that or more, or to null for no limit"
            )

    def _check_spans(self) -> None:
        total = self.warmup + self.final
        if total >= 1:
            raise ValueError(
                f"budget.warmup + budget.final = {self.warmup} + {self.final} = {total:g}: "
                "must be below 1, so that steps are left to prune in"
            )

    @property
    def initial(self) -> int:
        """The number of components a layer starts with, also where `init` is null."""
        return self._default_init() if self.init is None else self.init

    def _default_init(self) -> int:
        return max(1, math.ceil(1.5 * self.target))


@dataclass
class DemConfig:
    """The Dimensional Equilibrium Modulator's weight in the loss."""

    eta: Annotated[float, Ge(0)] = 0.1
    """loss = task loss + eta R (Eq. 10) until the freeze, with method=dora alone: other methods
    have no R. The authors' code halves R, so that its 0.1 is 0.05 here."""

    def __post_init__(self) -> None:
        check_settings("dem", self)
