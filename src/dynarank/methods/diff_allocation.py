"""Diff Pruning's cut, in the form of an allocator (`dynarank.methods.base.Allocator`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dynarank.allocation.schedule import BudgetSchedule
from dynarank.methods.hard_concrete import GatedDifference, open_probability
from dynarank.methods.protocols import Carry


def _same(moment: Tensor) -> Tensor:
    return moment


class DiffAllocation:
    """Cuts the differences once, at the freeze, to a number of weights of the whole model."""

    # A bare function in a class would be called with self as well.
    agree: Callable[[Tensor], Tensor] = staticmethod(lambda keep: keep)

    def __init__(
        self, differences: Mapping[str, GatedDifference], schedule: BudgetSchedule, kept: int
    ) -> None:
        self.differences = list(differences.values())
        self.schedule = schedule
        self.kept = kept
        self.sizes = [gated.mask.numel() for gated in self.differences]
        self.t = 0
        self.frozen = False
        self._factors: list[Tensor] = []
        """What the cut multiplied each difference by, until `carried` gives it on."""

    @property
    def ema(self) -> Tensor:
        """The mean probability of a tensor's gates to be open, one number a tensor."""
        means = []
        for gated in self.differences:
            probabilities = open_probability(gated.log_alpha.detach())
            means.append(probabilities.mean())
        return torch.stack(means)

    def step(self) -> bool:
        self.t += 1
        if self.frozen or self.t != self.schedule.freeze_step:
            return False
        self._cut()
        return True

    @torch.no_grad()
    def _cut(self) -> None:
        sizes = []
        for gated in self.differences:
            gated.eval()  # the gates without noise
            sizes.append(gated.present().abs().flatten())
            # Back to what it was: steps are taken in training alone.
            gated.train()
        all_sizes = torch.cat(sizes)
        # A small model may have fewer weights than the budget has parameters.
        count = min(self.kept, len(all_sizes))
        keep = torch.zeros_like(all_sizes, dtype=torch.bool)
        keep[torch.topk(all_sizes, count, sorted=False).indices] = True
        keep = self.agree(keep)  # processes must agree before anything is zeroed
        for gated, part in zip(self.differences, keep.split(self.sizes), strict=True):
            factor = gated.settle(part.view_as(gated.mask))
            self._factors.append(factor)
        self.frozen = True

    def carried(self) -> dict[Tensor, Carry]:
        """See `dynarank.methods.protocols.MovesParameters`. The moments stay as they are."""
        maps: dict[Tensor, Carry] = {}
        for gated, factor in zip(self.differences, self._factors, strict=True):
            # An average of the bare difference would miss the gate that is now in the difference.
            maps[gated.difference] = Carry(
                value=partial(torch.mul, factor), first=_same, second=_same
            )
        self._factors = []  # as large as the model's weights
        return maps

    def budget(self) -> float:
        """Return the schedule's mean number of components, the unit of all budgets."""
        return self.schedule.budget(self.t)

    def active_count(self) -> Tensor:
        """Return the expected number of open gates; from the freeze on, of kept weights."""
        if self.frozen:
            return torch.stack([gated.mask.sum() for gated in self.differences]).sum()
        counts = []
        for gated in self.differences:
            probabilities = open_probability(gated.log_alpha.detach())
            counts.append(probabilities.sum())
        return torch.stack(counts).sum().round().long()

    def ranks(self) -> dict[str, int]:
        return {}

    def allowance(self, t: int) -> int:
        return self.kept if t >= self.schedule.freeze_step else sum(self.sizes)

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t, "frozen": self.frozen, "kept": self.kept, "sizes": self.sizes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["kept"] != self.kept or state["sizes"] != self.sizes:
            raise ValueError("it is of another budget or of other weights")
        self.t, self.frozen = state["t"], state["frozen"]
        for gated in self.differences:
            gated.end_gates(self.frozen)  # masks and differences come with the model's own state
