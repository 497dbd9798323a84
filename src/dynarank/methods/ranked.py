"""What the methods with ranks share: their schedule, their sizes under a budget, their export."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dynarank.adapters.layer import linear_shape, stores_transposed
from dynarank.allocation.config import BudgetConfig
from dynarank.allocation.schedule import BudgetSchedule
from dynarank.methods.base import MethodSize
from dynarank.rounding import round_half_up

ADAPTER = "default"
"""PEFT's name of the adapter inside a layer."""


def schedule_of(budget: BudgetConfig, total_steps: int, shape: str) -> BudgetSchedule:
    """Return the budget's schedule over a run of so many optimizer steps."""
    return BudgetSchedule(
        init=budget.initial,
        target=budget.target,
        total=total_steps,
        warmup=budget.warmup,
        final=budget.final,
        interval=budget.interval,
        shape=shape,
    )


def pruned_size(budget: BudgetConfig, matrices: int, nominal: int) -> MethodSize:
    """Return the size of a method that prunes from `budget.init` to `budget.target`."""
    return MethodSize(
        label=f"rank {budget.initial} to {budget.target}",
        matrices=matrices,
        components=round_half_up(budget.target * matrices),
        parameters=nominal,
        note="where all matrices keep as many; wide ones cost more",
    )


def check_some_left(budget: BudgetConfig, model: nn.Module, names: Sequence[str]) -> None:
    """Raise `ValueError` where a budget leaves no component, of the matrices that are named."""
    matrices = len(names)
    if not matrices:
        return  # what adapts them says so
    if budget.unit == "parameters":
        costs = [sum(linear_shape(model.get_submodule(name))) for name in names]
        cheapest, total = min(costs), sum(costs)
        allowance = round_half_up(budget.target * total)
        if allowance < cheapest:
            raise ValueError(
                f"budget.target = {budget.target:g}: pays for {allowance:,} parameters, and a "
                f"component takes {cheapest:,} or more. Give at least "
                f"{_rounded_up(cheapest / total)}, or train the head alone with method=head"
            )
    elif round_half_up(budget.target * matrices) == 0:
        raise ValueError(
            f"budget.target = {budget.target:g}: leaves none of {matrices} matrices a component. "
            # Half a component rounds up to one.
            f"Give at least {_rounded_up(0.5 / matrices)}, or train the head alone with method=head"
        )


def _rounded_up(value: float) -> str:
    """Return a number in three digits that is not below it."""
    # Rounded down, the advice would be a budget that is refused again.
    digits = 2 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10**digits) / 10**digits:.3g}"


def holds_transposed(layers: Mapping[str, Any]) -> bool:
    """Return whether PEFT's layers adapt `Conv1D` maps, whose weights are (d_in, d_out)."""
    return any(stores_transposed(layer.base_layer) for layer in layers.values())
