"""What a run that goes on needs of an allocation, beside the model's own parameters and masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from dynarank.allocation.allocator_checks import check_saved

if TYPE_CHECKING:
    from dynarank.allocation.allocator import RankAllocator


def allocation_state(allocator: RankAllocator) -> dict[str, Any]:
    """Return the allocation's progress and scores, and the settings that they belong to."""
    sensitivity = allocator.scorer.sensitivity
    # After the freeze no component is scored any more.
    wanted = None if allocator.frozen else sensitivity
    return {
        "t": allocator.t,
        "frozen": allocator.frozen,
        "ema": allocator.ema.cpu(),  # no copy: e is replaced, never changed in place
        "layers": dict(zip(allocator.names, allocator.sizes, strict=True)),
        "schedule": vars(allocator.schedule).copy(),
        "choice": {
            "score": allocator.score,
            "cost_aware": allocator.cost_aware,
            "min_rank": allocator.min_rank,
            "max_rank": allocator.max_rank,
            "beta": allocator.beta,
            "regrow": allocator.regrow,
            "seed": allocator.seed,
        },
        "sensitivity": None if wanted is None else wanted.state_dict(),
    }


def load_allocation_state(allocator: RankAllocator, state: Mapping[str, Any]) -> None:
    """Take up what `allocation_state` returned.

    Raises:
        ValueError: the state lacks a part, or is of other layers, another schedule or other
            settings. Nothing is changed then.
    """
    check_saved(state, allocation_state(allocator))
    allocator.t = int(state["t"])
    allocator.progress.frozen = False
    if state["frozen"]:
        allocator.progress.freeze(layer.mask for layer in allocator.layers)
    allocator.ema = state["ema"].to(allocator.ema.device, torch.float32)
    sensitivity = allocator.scorer.sensitivity
    if sensitivity is not None and state["sensitivity"] is not None:
        sensitivity.load_state_dict(state["sensitivity"])
