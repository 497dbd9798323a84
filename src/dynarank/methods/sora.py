"""SoRA, sparse low-rank adaptation (Ding et al., EMNLP 2023): a gate that is driven to zero.

    y = W0 x + s B (g * (A x))                               g (r') the gate, our c
    g := T(g - lr dL/dg, xi),  xi = lr lambda                 after each optimizer step
    T(v, xi) = sign(v) max(|v| - xi, 0)                       the proximal step of lambda sum |g|

The optimizer's step is AdamW's, as in the authors' code, and T follows it. (That code takes xi as a
constant, without the rate. Here it is the paper's lr lambda.) A gate at zero may return by its
gradient until the freeze, as there. Gates do not decay, as there.

Two more things are otherwise in that code. Its gates start normal (`gates=normal`), here at one: a
normal start spreads them more than a short run can move them, so that chance decides which stay.
And it adds a multiple of mean |g| to the loss besides, so that the penalty acts twice; the paper
has it in T alone.

The paper's lambda decides how many gates survive, and nothing meets a number. Here the number is
the budget's. T never takes the last K(t) gates that the schedule still allows: xi is at most the
size of the largest gate beyond them. (K(t) is in components, also where parameters count.) So
lambda sets how soon the gates part. Where lr x lambda, summed over the steps, stays well below the
gates' own size, none closes before the freeze, which then cuts them all at once: a run warns of it.
At the freeze exactly the K largest gates stay (where parameters count, those largest for each
parameter, by their size and not its square, as `layer_norms` says). They are not shrunk for that,
and train on without T.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynarank.adapters.greedy import top_components
from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.components import Layers
from dynarank.allocation.schedule import BudgetSchedule
from dynarank.methods.components import ComponentMethod
from dynarank.methods.config import SoraConfig
from dynarank.methods.ranked import schedule_of

log = logging.getLogger(__name__)


def soft_threshold(values: Tensor, threshold: Tensor | float) -> Tensor:
    """Return the proximal map of threshold x sum |values|: each nearer to zero, or zero."""
    return values.sign() * (values.abs() - threshold).clamp(min=0)


class SoraAllocator(RankAllocator):
    """Thresholds the gates after every step, and keeps the budget's number at the freeze."""

    def __init__(
        self,
        layers: Layers,
        schedule: BudgetSchedule,
        sparsity: float,
        cost_aware: bool = False,
        min_rank: int = 0,
        max_rank: int | None = None,
    ) -> None:
        super().__init__(
            layers,
            schedule,
            beta=0.0,
            score="absolute",
            cost_aware=cost_aware,
            min_rank=min_rank,
            max_rank=max_rank,
        )
        self.sparsity = sparsity
        self.lr = 0.0
        """The optimizer's learning rate; set before each `step` (see `TakesRate`)."""

    def step(self) -> bool:
        self.t += 1
        if self.frozen:
            return False
        self.threshold(self.lr * self.sparsity)
        self.update()
        if self.t != self.schedule.freeze_step:
            return False
        none_closed = bool(self.ema.all())
        keep = self.prune(self.allowance(self.t))
        if none_closed and not bool(keep.all()):
            log.warning(
                "method.sparsity = %g: the threshold had closed no gate when the ranks became "
                "final, and %d of %d were cut at once. Give more",
                self.sparsity,
                int((~keep).sum()),
                len(keep),
            )
        self.freeze(keep)
        return True

    @torch.no_grad()
    def threshold(self, xi: float) -> None:
        """Bring every gate nearer to zero by xi, or by as much as leaves the schedule's K(t)."""
        gates = self._cat([layer.lora_c.detach() for layer in self.layers])
        count = self.schedule.keep(self.t, len(self.layers))
        sizes = gates.abs()
        # The largest of the gates that the schedule lets go; zero where it lets none go. No
        # indexing by a mask, whose result has a size that the host would have to wait for.
        largest_beyond = sizes.masked_fill(top_components(sizes, count), 0).max()
        bound = largest_beyond.clamp(max=xi)
        for layer in self.layers:
            gate = layer.lora_c
            gate.copy_(soft_threshold(gate, bound.to(gate.device)))

    def update(self) -> None:
        """Take the gates' sizes as the scores."""
        sizes = [layer.lora_c.detach().abs() for layer in self.layers]
        self.ema = self._cat(sizes).float()
        if self.check_every_step:
            self.check_finite()

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        # A resumed run compares the choice, and refuses another one.
        state["choice"]["sparsity"] = self.sparsity
        return state


class Sora(ComponentMethod[SoraConfig]):
    """Gated components, from `budget.init` a layer to `budget.target` on average."""

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        r = self.budget.initial
        self.wrap(model, targets, r=r, alpha=self.config.alpha, dropout=self.config.dropout)
        if self.config.gates == "normal":
            for layer in self.layers.values():
                nn.init.normal_(layer.lora_c)
        return model

    def allocator(self, total_steps: int) -> SoraAllocator:
        return SoraAllocator(
            self.layers,
            schedule_of(self.budget, total_steps, self.budget.schedule),
            sparsity=self.config.sparsity,
            cost_aware=self.budget.unit == "parameters",
            min_rank=self.budget.min_rank,
            max_rank=self.budget.max_rank,
        )
