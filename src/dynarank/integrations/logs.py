"""What the callbacks log and say of an allocation."""

from __future__ import annotations

import torch

from dynarank.allocation.allocator import RankAllocator

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles of the scores that are logged."""


def log_values(allocator: RankAllocator) -> dict[str, float]:
    """Return the budget, the number of nonzero components and the scores' quantiles, by name."""
    levels = torch.tensor(QUANTILES, device=allocator.ema.device)
    scores = torch.quantile(allocator.ema, levels).tolist()
    values = {
        "budget/scheduled": float(allocator.budget()),
        "budget/nonzero": float(allocator.active_count()),
    }
    for quantile, score in zip(QUANTILES, scores, strict=True):
        values[f"score/q{100 * quantile:02.0f}"] = score
    return values


def over_budget_message(allocator: RankAllocator) -> str:
    """Return what to say of a run that ended before its ranks were final."""
    schedule = allocator.schedule
    components = int(allocator.active_count())
    wanted = schedule.keep(schedule.total, len(allocator.layers))
    return (
        f"the run ended after {allocator.t} optimizer steps, before the ranks are final at step "
        f"{schedule.freeze_step} of {schedule.total}: the model holds {components} components "
        f"and is not at its budget of {wanted}. Resume the run, or train for the number of steps "
        "that it was started with"
    )
