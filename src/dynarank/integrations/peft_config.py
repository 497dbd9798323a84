"""`DynaRankConfig`: PEFT's `LoraConfig` with the settings of an allocation."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import peft

from dynarank.integrations.settings import AllocationSettings


@dataclass
class DynaRankConfig(AllocationSettings, peft.LoraConfig):  # type: ignore[misc]
    """PEFT's `LoraConfig` with the settings of an allocation, as `AdaLoraConfig` is one.

    Every layer starts with `r` components. While the model trains, those that matter least in the
    whole model are pruned, until a layer keeps `target` of them on average: some layers keep more,
    some none. Give the config to `dynarank.integrations.peft.get_peft_model`, since PEFT's own
    function knows no gates.

    What `save_pretrained` writes is a plain LoraConfig: the allocation's settings and `start` are
    never saved.

    Args:
        target: the mean number of components that a layer keeps at the end.
        r: components that a layer starts with. None: ceil(1.5 x target), as in the paper.
        start: `paper` (A and B random, c = 0), `lora` (as LoRA starts, B = 0, c = 1),
            `orthogonal` (the vectors of A and B at length one and at right angles, c = 0), or
            `orthogonal_A` (those of A alone, B = 0, and c fixed at 1).
        warmup: the share of the optimizer steps before the first pruning.
        final: the share of the optimizer steps after the last pruning, with the ranks frozen.
        interval: optimizer steps from one pruning to the next.
        shape: how the budget falls from r to target: `cubic`, `cubic_adalora`, `linear` or `step`.
        regrow: whether a pruned component may return by its gradient before the ranks are frozen.
        score: what components are ranked by: `relative` (Eq. 7), `absolute`, `sensitivity`,
            `fisher` or `random`.
        beta: the smoothing of the scores (Eq. 8).
        cost_aware: whether the budget counts parameters instead of components.
        min_rank: components that every layer keeps at least.
        max_rank: components that a layer keeps at most in the end; None for no limit.
        eta: the weight of DEM (Eq. 10), where a callback drives the allocation.
        orthogonality: the weight of AdaLoRA's orthogonal regularization, likewise.
        rate_power: how far the adapters' steps are shortened before the ranks are frozen, likewise.

    The other arguments (`target_modules`, `lora_alpha`, `lora_dropout`, `modules_to_save`, ...) are
    those of `peft.LoraConfig`.

    Raises:
        ValueError: a setting is out of its range, or target is above r.

    Examples:
        >>> from dynarank.integrations.peft import DynaRankConfig
        >>> config = DynaRankConfig(target=4, target_modules=["q_proj", "v_proj"], lora_alpha=8)
        >>> config.r
        6
    """

    r: int | None = None
    start: str = "paper"
    """`paper`: A and B are random and c = 0. `lora`: as LoRA starts, with B = 0 and c = 1.
    `orthogonal`: A's rows and B's columns have length one and right angles, and c = 0.
    `orthogonal_A`: A's rows alone have, B = 0, and c stays at 1."""

    def __post_init__(self) -> None:
        self.allocation()  # checks them, before r is made of the target
        if self.r is None:
            self.r = math.ceil(1.5 * self.target)
        # By name: super() would reach AllocationSettings alone.
        peft.LoraConfig.__post_init__(self)
        pattern = self.rank_pattern or {}
        # A rank_pattern may give layers more than r. Their mean is checked when they are gated.
        largest = max([self.r, *pattern.values()])
        if self.target > largest:
            raise ValueError(
                f"target = {self.target:g} is above r = {largest}: pruning only takes away. Give "
                f"r = {math.ceil(1.5 * self.target)}, or a smaller target"
            )

    def allocation(self) -> AllocationSettings:
        """Return the allocation's settings."""
        names = [field.name for field in fields(AllocationSettings)]
        return AllocationSettings(**{name: getattr(self, name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """Return LoraConfig's settings alone, which is what is saved."""
        own = own_settings()
        everything: dict[str, Any] = super().to_dict()
        return {name: value for name, value in everything.items() if name not in own}

    def plain(self) -> peft.LoraConfig:
        """Return a LoraConfig of the same settings."""
        # Not made of its values: LoraConfig has attributes that its constructor does not take.
        config = peft.LoraConfig()
        own = own_settings()
        for name, value in vars(self).items():
            if name not in own:
                setattr(config, name, value)
        return config


def own_settings() -> set[str]:
    """Return the names of the settings that `DynaRankConfig` has and LoraConfig has not."""
    plain = {field.name for field in fields(peft.LoraConfig)}
    return {field.name for field in fields(DynaRankConfig)} - plain
