"""What a user says of an allocation, once, whichever loop drives it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.allocator_checks import cannot_allocate, check_bounds
from dynarank.allocation.attaching import Attachment
from dynarank.allocation.components import Components, component_parameters
from dynarank.allocation.config import SCORES
from dynarank.allocation.schedule import BudgetSchedule
from dynarank.allocation.shorter_steps import ShorterSteps
from dynarank.errors import nearest
from dynarank.rounding import round_half_up


@dataclass(kw_only=True)
class AllocationSettings:
    """How many components a model may keep, and how they are chosen.

    `attach`, `DynaRankConfig` and the callbacks take these as named arguments. The meaning of each
    is below its field.

    Raises:
        ValueError: a value is out of its range; the message names it.

    Examples:
        >>> from torch import nn
        >>> from dynarank import inject
        >>> from dynarank.integrations.settings import AllocationSettings
        >>> layers = inject(nn.ModuleDict({"query": nn.Linear(8, 8)}), targets=["query"], r=6)
        >>> allocator = AllocationSettings(target=4).allocator(layers, total=1000)
        >>> allocator.schedule.freeze_step
        500
    """

    target: float = 2
    """Mean number of components that a layer keeps at the end."""
    warmup: float = 0.15
    """Share of the optimizer steps before the first pruning."""
    final: float = 0.5
    """Share of the optimizer steps after the last pruning, with the ranks frozen."""
    interval: int = 100
    """Optimizer steps from one pruning to the next."""
    shape: str = "cubic"
    """How the budget falls: cubic, cubic_adalora, linear or step."""
    regrow: bool = True
    """Whether a pruned component may return before the freeze."""
    score: str = "relative"
    """What components are ranked by: relative (Eq. 7), absolute, sensitivity, fisher or random."""
    beta: float = 0.9
    """Smoothing of the scores (Eq. 8)."""
    cost_aware: bool = False
    """Whether parameters are counted instead of components."""
    min_rank: int = 0
    """Components that every layer keeps at least."""
    max_rank: int | None = None
    """Components that a layer keeps at most in the end; None: no limit."""
    eta: float = 0.1
    """Weight of the Dimensional Equilibrium Modulator (Eq. 10) until the freeze; 0: none."""
    orthogonality: float = 0.0
    """Weight of AdaLoRA's orthogonal regularization, to the end; 0: none. It goes with
    start="orthogonal" (0.5) or "orthogonal_A" (0.1)."""
    rate_power: float = 0.0
    """The adapters' steps are (target / budget now)^rate_power as long as the optimizer's, so that
    a wide start is calm; 0: always as long. This library's recipe has 0.5."""

    def __post_init__(self) -> None:
        # Made for their checks alone: init and total are known when training begins.
        schedule = self.schedule(init=self.target, total=1)
        ShorterSteps(schedule, self.rate_power)
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta = {self.beta}: must lie in [0, 1)")
        if self.score not in SCORES:
            raise ValueError(f"score = {self.score!r}: must be one of {', '.join(SCORES)}")
        check_bounds(min_rank=self.min_rank, max_rank=self.max_rank, target=self.target)
        for name, weight in (("eta", self.eta), ("orthogonality", self.orthogonality)):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name} = {weight}: must be 0 (off) or more, and finite")

    def schedule(self, init: float, total: int) -> BudgetSchedule:
        """Return the schedule of a run.

        Args:
            init: components that a layer starts with, on average.
            total: the optimizer steps of the run.
        """
        return BudgetSchedule(
            init=init,
            target=self.target,
            total=total,
            warmup=self.warmup,
            final=self.final,
            interval=self.interval,
            shape=self.shape,
        )

    def attach(self, allocator: RankAllocator, optimizer: torch.optim.Optimizer) -> Attachment:
        """Let an optimizer drive an allocator, with these settings' penalties and rate."""
        return allocator.attach(
            optimizer,
            eta=self.eta,
            orthogonality=self.orthogonality,
            rate_power=self.rate_power,
        )

    def allocator(self, layers: Mapping[str, Components], total: int) -> RankAllocator:
        """Return an allocator of these layers for a run of `total` optimizer steps.

        It warns where the score cannot tell layers apart.

        Args:
            layers: by module name, in model order.
            total: the optimizer steps of the whole run.

        Raises:
            ValueError: nothing of the adapter would be left at the end, or as `RankAllocator`.
        """
        schedule = self.schedule(init=mean_size(layers.values()), total=total)
        self._check_end(schedule, layers)
        reason = cannot_allocate(self.score, schedule.init, self.target, self.cost_aware)
        if reason is not None:
            warnings.warn(f"score = {self.score!r}: {reason}", stacklevel=2)
        return RankAllocator(
            layers,
            schedule,
            beta=self.beta,
            regrow=self.regrow,
            score=self.score,
            cost_aware=self.cost_aware,
            min_rank=self.min_rank,
            max_rank=self.max_rank,
        )

    def _check_end(self, schedule: BudgetSchedule, layers: Mapping[str, Components]) -> None:
        """Raise `ValueError` where the budget of the end is below one component."""
        costs = [component_parameters(layer) for layer in layers.values()]
        if self.cost_aware:
            cheapest = min(costs)
            # Where not even the cheapest fits, nothing is kept.
            kept = round_half_up(self.target * sum(costs)) // cheapest
            # What one component of the cheapest layer takes of a budget of one a layer.
            smallest_target = cheapest / sum(costs)
        else:
            kept = schedule.keep(schedule.total, len(costs))
            smallest_target = 1 / len(costs)
        if kept < 1:
            # Upwards, so that the target which the message names is enough.
            rounded_up = math.ceil(1000 * smallest_target) / 1000
            raise ValueError(
                f"target = {self.target:g}: over {len(costs)} layers this is less than one "
                f"component, and no adapter would be left. Give target = {rounded_up:g} or more"
            )


def mean_size(layers: Iterable[Components]) -> float:
    """Return the mean number of components of the layers."""
    sizes = [layer.r for layer in layers]
    mean = sum(sizes) / len(sizes)
    return int(mean) if mean == int(mean) else mean


def settings_from(target: float | None, others: Mapping[str, Any]) -> AllocationSettings | None:
    """Return the settings that a call's arguments make; None where it gives no target.

    Args:
        target: as the call gave it.
        others: the call's other named arguments: fields of `AllocationSettings`.

    Raises:
        ValueError: an argument has an unknown name, or others are given without a target.
    """
    known = [field.name for field in fields(AllocationSettings)]
    for name in others:
        if name not in known:
            raise ValueError(f"{name} is no setting of the allocation. {nearest(name, known)}")
    if target is not None:
        return AllocationSettings(target=target, **others)
    if others:
        raise ValueError(
            f"{', '.join(others)} given without target: give target, the mean number of "
            "components that a layer keeps"
        )
    return None
