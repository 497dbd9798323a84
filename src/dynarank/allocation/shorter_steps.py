"""Shorter steps while more components live than are kept in the end.

Legend: b(t) the budget after step t, b_T its target, p the power.

    factor(t) = (b_T / b(t))^p              theta <- theta + factor(t) (step of the optimizer)

A model that starts wide has many components, which together move it farther in a step than those
that are kept will. This calms the start. For an optimizer whose step is proportional to its
learning rate, as SGD's and AdamW's is, weight decay included, it is the same as a learning rate
times factor(t); but it needs no parameter group of the adapters alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dynarank.allocation.components import Components
from dynarank.allocation.schedule import BudgetSchedule


def rate_factor(schedule: BudgetSchedule, step: int, power: float) -> float:
    """Return (b_T / b(t))^p, at most 1.

    Args:
        schedule: the budget's.
        step: t, the optimizer steps taken so far.
        power: p; 0 gives 1 throughout.
    """
    budget = schedule.budget(step)
    if budget == schedule.target:  # a target of zero, too
        return 1.0
    return float((schedule.target / budget) ** power)


class ShorterSteps:
    """Shortens an optimizer's steps of A, B and c: call `before` and `after` around each step.

    Between the two it holds a copy of what is trained of A, B and c, and none from the freeze on.

    Args:
        schedule: whose budget shortens the steps.
        power: p, between 0 (never) and 1.

    Raises:
        ValueError: the power lies outside [0, 1].
    """

    def __init__(self, schedule: BudgetSchedule, power: float) -> None:
        if not 0 <= power <= 1:  # this refuses NaN, too
            raise ValueError(f"rate_power = {power}: must lie between 0 (off) and 1")
        self.schedule = schedule
        self.power = power
        self._factor = 1.0
        self._trained: list[Tensor] = []
        self._copies: list[Tensor] = []

    @torch.no_grad()
    def before(self, layers: Iterable[Components], step: int) -> None:
        """Remember the parameters, where step number `step`, from 0 on, is to be shortened."""
        self._trained, self._copies = [], []
        self._factor = rate_factor(self.schedule, step, self.power)
        if self._factor == 1:
            return
        for layer in layers:
            for parameter in (layer.lora_A, layer.lora_B, layer.lora_c):
                # Without a gradient an optimizer leaves it alone.
                if parameter.grad is not None:
                    self._trained.append(parameter)
                    self._copies.append(parameter.clone())

    @torch.no_grad()
    def after(self) -> None:
        """Take back what the step went too far. A step that was skipped stays none."""
        for parameter, copy in zip(self._trained, self._copies, strict=True):
            parameter.copy_(torch.lerp(copy, parameter, self._factor))
        self._trained, self._copies = [], []
