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
        "kept": allocator.progress.kept,
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
    present = allocation_state(allocator)
    present.pop("kept")  # states of earlier versions lack it
    check_saved(state, present)
    progress = allocator.progress
    progress.step = int(state["t"])
    progress.frozen, progress.kept = False, None
    if state["frozen"]:
        progress.freeze(layer.mask for layer in allocator.layers)
        # The masks may still be those of a new model, which keep all.
        progress.kept = state.get("kept", progress.kept)
    allocator.ema = state["ema"].to(allocator.ema.device, torch.float32)
    sensitivity = allocator.scorer.sensitivity
    if sensitivity is not None and state["sensitivity"] is not None:
        sensitivity.load_state_dict(state["sensitivity"])
