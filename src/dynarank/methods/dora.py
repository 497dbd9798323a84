"""DoRA, dynamic rank distribution (Mao et al., ACL 2024): prunable rank-one components in every target layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from dynarank.adapters.inject import inject
from dynarank.adapters.layer import DoRALinear
from dynarank.adapters.peft_format import write_peft_adapter
from dynarank.allocation.allocator import RankAllocator, component_parameters
from dynarank.allocation.dem import dem_penalty
from dynarank.allocation.schedule import BudgetSchedule
from dynarank.methods.base import Method
from dynarank.methods.config import DoRAConfig


class DoRA(Method[DoRAConfig]):
    """Eq. 6 in every target layer, allocation by Eqs. 7 to 9, DEM (Eq. 10) in the loss until the freeze."""

    penalty_name = "dem"
    layers: dict[str, DoRALinear]

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        config, r = self.config, self.budget.initial
        start = config.init
        self.layers = inject(
            model, targets, r, config.alpha_at(r), config.dropout, exclude=self.head, start=start
        )
        return model

    def allocator(self, total_steps: int) -> RankAllocator:
        budget = self.budget
        spans = (budget.warmup, budget.final, budget.interval)
        schedule = BudgetSchedule(
            budget.initial, budget.target, total_steps, *spans, budget.schedule
        )
        choice = (self.config.score, budget.unit == "parameters", budget.min_rank)
        return RankAllocator(self.layers, schedule, self.config.beta, budget.regrow, *choice)

    def lr_ratios(self) -> list[tuple[list[nn.Parameter], float]]:
        ratio = self.config.c_lr_ratio
        return [] if ratio == 1 else [([layer.lora_c for layer in self.layers.values()], ratio)]

    def penalty(self, frozen: bool) -> Tensor | None:
        return (
            self.dem.eta * dem_penalty(list(self.layers.values()))
            if self.dem.eta and not frozen
            else None
        )

    def ranks(self) -> dict[str, int]:
        return {name: int(layer.active().sum()) for name, layer in self.layers.items()}

    def adapter_parameters(self) -> int:
        return sum(
            rank * component_parameters(self.layers[name]) for name, rank in self.ranks().items()
        )

    def export(self, folder: Path, base: str, task_type: str) -> None:
        write_peft_adapter(self.model, folder, base, task_type, self.head)
