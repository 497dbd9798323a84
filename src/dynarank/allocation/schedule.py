"""The budget schedule (Eq. 9) as a pure function of the optimizer step. No torch.

Legend: t optimizer steps taken, T all optimizer steps of the run, b(t) the mean number of
components a layer may keep after step t, b0 = b(0) and bT = b(T), t_i = floor(warmup T) the step
from which b falls, t_f = floor(final T) the steps after the last pruning, p in [0, 1] the share of
the steps from t_i to T - t_f that are over, L layers, K(t) = L b(t) components of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from dynarank.rounding import round_half_up


def _share(fraction: float, total: int) -> int:
    # 0.29 * 100 is 28.999... in floating point: the share that was meant is 29.
    return math.floor(fraction * total + 1e-9)


SHAPES: dict[str, Callable[[float], float]] = {
    "cubic": lambda p: 1 - p**3,
    "cubic_adalora": lambda p: (1 - p) ** 3,
    "linear": lambda p: 1 - p,
    "step": lambda p: 1.0,  # the fall at the freeze is `budget_schedule`'s
}
"""What is left of b0 - bT at p: the paper's (slow first), AdaLoRA's (fast first), and two more."""


def budget_schedule(
    t: int,
    init: float,
    target: float,
    total: int,
    warmup: float,
    final: float,
    shape: str = "cubic",
) -> float:
    """Return b(t) of Eq. 9, in components a layer, in the form that reaches bT.

    As the paper prints it, it does not reach bT; in the authors' code it does.

        b = b0                      until t_i
        b = b0 - (b0 - bT) p^3      until T - t_f, with p = (t - t_i) / (T - t_f - t_i)
        b = bT                      from then on

    Args:
        t: optimizer steps taken.
        init: b0, components a layer starts with.
        target: bT, mean number of components that a layer keeps.
        total: T, the optimizer steps of the run.
        warmup: share of the steps before b falls, in [0, 1).
        final: share of the steps after the last pruning, in [0, 1).
        shape: one of `SHAPES`; others than `cubic` replace p^3. `step` falls from b0 to bT at
            T - t_f.

    Examples:
        >>> from dynarank import budget_schedule
        >>> settings = dict(init=6, target=4, total=1000, warmup=0.1, final=0.5)
        >>> [budget_schedule(t, **settings) for t in (0, 100, 300, 500, 1000)]
        [6, 6, 5.75, 4, 4]
    """
    start = _share(warmup, total)
    freeze = total - _share(final, total)
    if t >= freeze:
        return target
    if t <= start:
        return init
    p = (t - start) / (freeze - start)
    return target + (init - target) * SHAPES[shape](p)


@dataclass(frozen=True)
class BudgetSchedule:
    """When to prune, to how many components, and when to freeze (Eq. 9).

    All steps are optimizer steps, not batches: with gradient accumulation there are fewer.

    Args:
        init: components a layer starts with; the `r` that `inject` was given.
        target: mean number of components that a layer keeps at the end. A layer may keep more, or
            none. A fraction is allowed: under 0.25 one layer in four keeps a component.
        total: the optimizer steps of the whole run.
        warmup: share of the steps before the first pruning, in [0, 1).
        final: share of the steps after the last pruning, with the ranks frozen, in [0, 1).
        interval: optimizer steps from one pruning to the next.
        shape: how the budget falls, one of `SHAPES`: `cubic` is the paper's, slow first.

    Raises:
        ValueError: total or interval < 1 or no whole number, target < 0, init < target, warmup and
            final outside [0, 1) or with no room between them, or an unknown shape.

    Examples:
        >>> from dynarank import BudgetSchedule
        >>> schedule = BudgetSchedule(init=6, target=4, total=1000)
        >>> schedule.start_step, schedule.freeze_step
        (150, 500)
        >>> schedule.keep(500, layers=72)  # components of the whole model
        288
    """

    init: float
    target: float
    total: int
    warmup: float = 0.15
    final: float = 0.5
    interval: int = 100
    shape: str = "cubic"

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"shape = {self.shape!r}: must be one of {', '.join(SHAPES)}")
        if self.total < 1:
            raise ValueError(
                f"total = {self.total}: the run's optimizer steps must be known, and at least 1"
            )
        # A step that is no whole number never comes, that of the freeze among them.
        if self.total % 1 != 0:  # this refuses NaN and infinity, too
            raise ValueError(
                f"total = {self.total}: must be a whole number of optimizer steps. An epoch's last "
                "window of accumulated batches is a step too: round up"
            )
        if not 0 <= self.target <= self.init < math.inf:  # this refuses NaN, too
            raise ValueError(
                f"init = {self.init}, target = {self.target}: wanted init >= target >= 0"
            )
        if not (0 <= self.warmup < 1 and 0 <= self.final < 1 and self.warmup + self.final < 1):
            raise ValueError(
                f"warmup = {self.warmup}, final = {self.final}: "
                "must be shares of the run whose sum is below 1"
            )
        if self.interval < 1 or self.interval % 1 != 0:
            raise ValueError(f"interval = {self.interval}: a whole number of steps, at least 1")

    @property
    def start_step(self) -> int:
        """The step from which the budget falls, t_i."""
        return _share(self.warmup, self.total)

    @property
    def freeze_step(self) -> int:
        """The step of the last pruning, T - t_f."""
        return self.total - _share(self.final, self.total)

    def budget(self, t: int) -> float:
        """Return b(t), the mean number of components a layer may keep after step t."""
        return budget_schedule(
            t,
            init=self.init,
            target=self.target,
            total=self.total,
            warmup=self.warmup,
            final=self.final,
            shape=self.shape,
        )

    def keep(self, t: int, layers: int) -> int:
        """Return K(t), the components that `layers` layers may keep together after step t.

        Halves round up.
        """
        return round_half_up(layers * self.budget(t))

    def prunes_at(self, t: int) -> bool:
        """Return whether step t prunes: at multiples of `interval` from t_i on, and at T - t_f.

        AdaLoRA counts the interval from the run's start, too. DoRA's authors count it from t_i,
        where their first pruning is.
        """
        if t == self.freeze_step:
            return True
        return self.start_step <= t < self.freeze_step and t % self.interval == 0
