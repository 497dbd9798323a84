"""What the methods with ranks share: their schedule, their sizes under a budget, their export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynarank.adapters.layer import stores_transposed
from dynarank.allocation.config import BudgetConfig
from dynarank.allocation.schedule import BudgetSchedule, round_half_up
from dynarank.methods.base import MethodSize

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
    """Return the size of a method that prunes from `budget.init` to `budget.target`.

    Raises:
        ValueError: the budget leaves no component.
    """
    check_some_left(budget, matrices)
    return MethodSize(
        label=f"rank {budget.initial} to {budget.target}",
        matrices=matrices,
        components=round_half_up(budget.target * matrices),
        parameters=nominal,
        note="where all matrices keep as many; wide ones cost more",
    )


def check_some_left(budget: BudgetConfig, matrices: int) -> None:
    """Raise `ValueError` where a budget rounds to no component at all."""
    if round_half_up(budget.target * matrices) == 0:
        raise ValueError(
            f"budget.target = {budget.target:g}: leaves none of {matrices} matrices a component. "
            # Half a component rounds up to one.
            f"Give at least {0.5 / matrices:.3g}, or train the head alone with method=head"
        )


def holds_transposed(layers: Mapping[str, Any]) -> bool:
    """Return whether PEFT's layers adapt `Conv1D` maps, whose weights are (d_in, d_out)."""
    return any(stores_transposed(layer.base_layer) for layer in layers.values())
