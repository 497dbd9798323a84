"""What an allocator refuses or warns of: layers, schedules and saved states that do not fit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dynarank.allocation.components import Layers
from dynarank.allocation.schedule import BudgetSchedule


def check_start(schedule: BudgetSchedule, sizes: Sequence[int]) -> None:
    """Raise `ValueError` if the layers have one size, and it is not the schedule's `init`.

    Layers of several sizes are not checked.
    """
    size = sizes[0]
    if set(sizes) == {size} and size != schedule.init:
        raise ValueError(
            f"the schedule starts at init = {schedule.init:g} components a layer, but each layer "
            f"has r = {size}. Give both the same number"
        )


def cannot_allocate(score: str, init: float, target: float, cost_aware: bool) -> str | None:
    """Return why a score cannot tell layers apart under a budget, in words; None where it can.

    The squares of a layer's relative scores (Eq. 7) sum to about one, whatever the layer learns.
    """
    if score != "relative":
        return None
    if cost_aware:
        return (
            "shares of a layer are alike in all layers, so that the price alone decides, and wide "
            "matrices keep nothing. Take absolute, sensitivity or fisher where parameters count"
        )
    if init == 1 and target < 1:
        return (
            "of one component a layer, each is its layer's whole update: all shares are one, "
            "whatever the data, and the first layers keep theirs. Take another score, or an init "
            "of 2 or more"
        )
    if init == 2 and target == 1:
        return (
            "from 2 components a layer to 1 it keeps exactly one in each layer, whatever the data: "
            "the larger of two shares is above any layer's smaller one. Take another score, or "
            "another init"
        )
    return None


def check_scores(scores: Tensor, names: Sequence[str], sizes: Sequence[int], step: int) -> None:
    """Raise `FloatingPointError` where a component's score is not finite. Waits for the device.

    Args:
        scores: of all components, (n) in layer order.
        names: the layers'.
        sizes: the number of components of each layer.
        step: the optimizer steps taken.
    """
    nonfinite = ~torch.isfinite(scores)
    if not bool(nonfinite.any()):
        return
    by_layer = zip(names, nonfinite.split(list(sizes)), strict=True)
    name = next(name for name, part in by_layer if part.any())
    raise FloatingPointError(f"step {step}: the importance of a component of {name} is not finite")


def warn_beyond_total(schedule: BudgetSchedule) -> None:
    """Warn that the optimizer goes on after the schedule's last step."""
    warnings.warn(
        f"the optimizer has taken more than the schedule's total = {schedule.total} steps: the "
        "ranks were frozen earlier than was meant. Give BudgetSchedule(total=...) the number of "
        "optimizer steps of the whole run",
        stacklevel=3,  # names the line that calls `step`
    )


def check_equal(part: str, saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless both are equal, their order included: e is laid out by it."""
    if part == "choice":
        # States of version 0.1.0 hold neither beta nor regrow. They are still accepted.
        saved = {key: saved.get(key, value) for key, value in present.items()}
    if list(saved.items()) == list(present.items()):
        return
    differing = [key for key in {**saved, **present} if saved.get(key) != present.get(key)]
    first = differing[0] if differing else "order"
    raise ValueError(
        f"the allocator's saved {part} are not this run's: {first} was {saved.get(first)}, "
        f"is {present.get(first)} ({len(differing)} differ)"
    )


def layer_names(layers: Layers) -> list[str]:
    """Return the layers' names; those of a list are its positions."""
    if isinstance(layers, Mapping):
        return list(layers)
    return [str(position) for position in range(len(layers))]


def check_bounds(min_rank: int, max_rank: int | None, target: float) -> None:
    """Raise `ValueError` where a layer's least or most components do not go with their mean."""
    for name, rank in (("min_rank", min_rank), ("max_rank", max_rank)):
        if rank is not None and rank % 1 != 0:
            raise ValueError(f"{name} = {rank}: must be a whole number of components")
    if not 0 <= min_rank <= target:
        raise ValueError(f"min_rank = {min_rank}: must be 0 to target, which is {target:g}")
    if max_rank is not None and max_rank < max(target, 1):
        raise ValueError(
            f"max_rank = {max_rank}: must be at least 1, and at least target, which is {target:g}: "
            "the mean cannot be above the most"
        )


def check_saved(state: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless a saved state is one of this very allocation.

    Args:
        state: what was saved.
        present: what the allocator would save now.
    """
    missing = present.keys() - state.keys()
    if missing:
        raise ValueError(f"the allocator's saved state lacks {min(missing)}")
    for part in ("layers", "schedule", "choice"):
        check_equal(part, saved=state[part], present=present[part])
    if state["ema"].shape != present["ema"].shape:
        saved_shape, shape = list(state["ema"].shape), list(present["ema"].shape)
        raise ValueError(f"the allocator's saved scores are {saved_shape}, not {shape}")
