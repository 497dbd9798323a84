"""RankAllocator: which components of the whole model are kept, step by step.

Legend: t optimizer steps taken, L adapted layers, r' components a layer starts with, n = L r'
components of the model, e (n) smoothed scores in layer order, K(t) the number that may be kept
after step t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dynarank.adapters.progress import AllocationProgress
from dynarank.allocation.allocator_checks import (
    check_bounds,
    check_scores,
    check_start,
    layer_names,
    warn_beyond_total,
)
from dynarank.allocation.attaching import Attachment
from dynarank.allocation.components import (
    Components,
    Layers,
    as_list,
    can_return,
    component_costs,
    component_parameters,
)
from dynarank.allocation.config import FIXED
from dynarank.allocation.saving import allocation_state, load_allocation_state
from dynarank.allocation.schedule import BudgetSchedule
from dynarank.allocation.scoring import Scorer
from dynarank.allocation.selection import as_chosen, best_components, with_ceiling
from dynarank.rounding import round_half_up


class RankAllocator:
    """Scores, prunes and freezes the components of a model's adapters (Eqs. 7 to 9).

    Call `step()` once after every optimizer step; it does the rest when it is time. `update`,
    `prune` and `freeze` are its parts, for those who drive the allocation themselves. In a plain
    loop, `attach(optimizer)` calls `step()` by itself.

    Args:
        layers: the adapters by module name, in model order, as `inject` returns them; or a list of
            them, whose names are then their positions.
        schedule: when to prune, and to how many.
        beta: smoothing of the scores (Eq. 8).
        regrow: whether a pruned component may return by its gradient before the freeze. Where c is
            fixed none has a gradient to return by, and none does.
        score: `relative` (Eq. 7); `absolute`, the plain norm of s c_i b_i a_i^T; `sensitivity`,
            AdaLoRA's, which has its own smoothing and needs the gradients at `step()`; `fisher`,
            (c_i dL/dc_i)^2, which needs `observe()` before each optimizer step; or the control
            `random`.
        cost_aware: whether to count parameters instead of components. Then at most b(t) times what
            one component of every layer takes is spent, on the highest scores for each parameter.
        min_rank: components that every layer keeps at least.
        max_rank: components that a layer keeps at most in the end (vLLM's max_lora_rank, say); None
            for no ceiling. Before the end the ceiling is the scheduled mean, where that is higher.
        seed: of the score `random`.
        fixed_scores: scores in place of any, (n) in layer order; they stay as they are.

    Raises:
        ValueError: no layers, beta outside [0, 1), an unknown score, min_rank above the schedule's
            target or max_rank below it, or layers of one size that is not the schedule's `init`.
        FloatingPointError: a component's score is not finite; the message names its layer. On CPUs
            it comes from the `update` or `step` that meets the score. On accelerators these do not
            wait for the device, and it comes from the next pruning, or from `check_finite`.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from dynarank import BudgetSchedule, RankAllocator, inject
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> layers = inject(model, targets=["0", "1"], r=4)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        >>> schedule = BudgetSchedule(init=4, target=2, total=20, interval=1)
        >>> allocator = RankAllocator(layers, schedule)
        >>> attachment = allocator.attach(optimizer)  # from now on it steps by itself
        >>> for step in range(20):
        ...     loss = model(torch.randn(4, 8)).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> sum(allocator.ranks().values())  # 2 of 4 components a layer, wherever they matter
        4
    """

    def __init__(
        self,
        layers: Layers,
        schedule: BudgetSchedule,
        beta: float = 0.9,
        regrow: bool = True,
        score: str = "relative",
        cost_aware: bool = False,
        min_rank: int = 0,
        max_rank: int | None = None,
        seed: int = 0,
        fixed_scores: Tensor | None = None,
    ) -> None:
        self.layers: list[Components] = as_list(layers)
        if not 0 <= beta < 1:
            raise ValueError(f"beta = {beta}: must lie in [0, 1)")
        check_bounds(min_rank=min_rank, max_rank=max_rank, target=schedule.target)
        self.names = layer_names(layers)
        self.schedule = schedule
        self.beta = beta
        self.regrow = regrow and can_return(self.layers)
        self.score = score if fixed_scores is None else FIXED
        self.seed = seed
        self.cost_aware = cost_aware
        self.min_rank = min_rank
        self.max_rank = max_rank
        self.scorer = Scorer(self.layers, score, cost_aware, seed, fixed_scores)
        self.sizes = [layer.r for layer in self.layers]
        check_start(self.schedule, self.sizes)  # before anything is written on the layers
        self.progress = AllocationProgress(freeze_step=schedule.freeze_step)
        for layer in self.layers:
            layer.progress = self.progress  # exports look there
        self.agree: Callable[[Tensor], Tensor] = as_chosen
        """Maps what this process would keep to what is kept, (n) bool to (n) bool. Where several
        processes train one model, it returns the choice of the first."""
        self.ema = torch.zeros(sum(self.sizes))  # e, (n) float32
        self.check_every_step = True
        """Whether scores that are not finite are asked for at every step, or at prunings alone."""
        self.attached = 0  # how often; the newest attachment alone steps it
        self._follow_layers()

    def attach(
        self,
        optimizer: torch.optim.Optimizer,
        eta: float = 0.0,
        orthogonality: float = 0.0,
        rate_power: float = 0.0,
    ) -> Attachment:
        """Let each real step of an optimizer call `step()`; steps that a scaler skips do not count.

        Before each, after any clipping, the gradients of DEM (weight eta, until the freeze) and of
        AdaLoRA's orthogonal regularization are added. Until the budget is reached, each step is
        shortened by (target / budget now)^rate_power. `remove()` of the result undoes it.
        """
        return Attachment(
            self, optimizer, eta=eta, orthogonality=orthogonality, rate_power=rate_power
        )

    @property
    def t(self) -> int:
        """Optimizer steps taken."""
        return self.progress.step

    @t.setter
    def t(self, step: int) -> None:
        self.progress.step = step

    @property
    def frozen(self) -> bool:
        """Whether the kept components are final."""
        return self.progress.frozen

    def _follow_layers(self) -> None:
        """Move e to the layers' device: trainers move a model after its allocator was made."""
        device = self.layers[0].lora_c.device  # layers may lie on several
        if self.ema.device != device:
            self.ema = self.ema.to(device)
            self.check_every_step = device.type == "cpu"

    def step(self) -> bool:
        """Account for one optimizer step; return whether it pruned.

        After the freeze it only counts.
        """
        self.t += 1
        if self.t == self.schedule.total + 1:  # once, not at each step
            warn_beyond_total(self.schedule)
        # Frozen or not: the counts that are logged are made on e's device.
        self._follow_layers()
        if self.frozen:
            return False
        self.update()
        due = self.schedule.prunes_at(self.t)
        if due:
            keep = self.prune(self.allowance(self.t))
            if self.t == self.schedule.freeze_step:
                self.freeze(keep)
        return due

    def allowance(self, t: int) -> int:
        """Return what may be kept after step t: components or, where costs count, parameters."""
        if not self.cost_aware:
            return self.schedule.keep(t, len(self.layers))
        one_of_each = sum(component_parameters(layer) for layer in self.layers)
        return round_half_up(self.schedule.budget(t) * one_of_each)

    def observe(self, grad_scale: Tensor | None = None) -> None:
        """Take in the gradients of the coming optimizer step, where the score needs them.

        `attach` calls it. `grad_scale` is a loss scaler's factor that is still in the gradients.
        """
        if not self.frozen:
            self.scorer.observe(grad_scale)

    def update(self) -> None:
        """Smooth the components' present scores into e (Eqs. 7 and 8)."""
        scores, ema = self.scorer.smoothed(self.ema, self.beta)
        if self.check_every_step:
            check_scores(scores, self.names, self.sizes, self.t)  # before e is changed
        self.ema = ema  # an average that was once not finite stays so

    def check_finite(self) -> None:
        """Raise `FloatingPointError` if a score is not finite; waits for the device as prunings."""
        check_scores(self.ema, self.names, self.sizes, self.t)

    @torch.no_grad()
    def prune(self, count: int) -> Tensor:
        """Set c := 0 in all but the model's `count` best components; return the kept, (n) bool.

        The best have the highest smoothed scores. Exactly `count` are kept (all that are left, if
        `count` is larger): ties go to the earlier layer, then to the lower index. Without `regrow`,
        the rest are masked for good. Where costs count, `count` is a number of parameters.
        """
        self.check_finite()  # a sort puts NaN above all scores
        alive = self._cat([layer.mask for layer in self.layers])
        # Scores are never negative, so that -1 comes after all of them.
        scores = torch.where(alive, self.ema, torch.full_like(self.ema, -1.0))
        keep = best_components(
            with_ceiling(scores, self.sizes, self._ceiling()),
            self.sizes,
            count,
            floor=self.min_rank,
            costs=component_costs(self.layers, scores.device) if self.cost_aware else None,
            later=None if self.regrow else self.allowance(self.schedule.total),
            later_ceiling=self.max_rank,
        )
        keep = self.agree(keep)  # processes must agree before anything is zeroed
        for layer, pruned in zip(self.layers, (~keep).split(self.sizes), strict=True):
            layer.lora_c.masked_fill_(pruned.to(layer.lora_c.device), 0)  # A and B stay
        if not self.regrow:
            self._mask_out(keep)
        return keep

    def _ceiling(self) -> int | None:
        """Return what a layer may keep now; never less than leaves room for the whole budget."""
        if self.max_rank is None:
            return None
        return max(self.max_rank, math.ceil(self.schedule.budget(self.t)))

    @torch.no_grad()
    def freeze(self, keep: Tensor) -> None:
        """Make the kept set, (n) bool, final: the others are exactly zero from now on."""
        self._mask_out(keep)
        self.progress.freeze(layer.mask for layer in self.layers)

    def _mask_out(self, keep: Tensor) -> None:
        for layer, kept in zip(self.layers, keep.split(self.sizes), strict=True):
            layer.mask.logical_and_(kept.to(layer.mask.device))

    def _cat(self, parts: list[Tensor]) -> Tensor:
        """Return one tensor of all layers' components, (n), on the scores' device."""
        return torch.cat([part.to(self.ema.device) for part in parts])

    def _active(self) -> Tensor:
        """Return which components of the model are not zero, (n) bool."""
        c = self._cat([layer.lora_c.detach() for layer in self.layers])
        return self._cat([layer.mask for layer in self.layers]) & (c != 0)

    def budget(self) -> float:
        """Return b(t), the scheduled mean number of components a layer, now."""
        return self.schedule.budget(self.t)

    def active_count(self) -> Tensor:
        """Return the number of nonzero components, an int scalar. It waits for no device."""
        return self._active().sum()

    def ranks(self) -> dict[str, int]:
        """Return the number of nonzero components by module name, in model order."""
        active = self._active().cpu()  # one transfer for the whole model
        by_layer = active.split([layer.r for layer in self.layers])  # not `sizes`: a cut changes r
        return {name: int(part.sum()) for name, part in zip(self.names, by_layer, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs beside the model's own parameters and masks."""
        return allocation_state(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: the state lacks a part, or is of other layers, another schedule or other
                settings. Nothing is changed then.
        """
        load_allocation_state(self, state)
