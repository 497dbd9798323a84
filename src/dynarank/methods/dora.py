"""DoRA, dynamic rank distribution (Mao et al., ACL 2024): prunable rank-one components."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from dynarank.adapters.inject import find_linears, inject
from dynarank.adapters.layer import DoRALinear
from dynarank.adapters.peft_format import write_peft_adapter
from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.components import component_parameters
from dynarank.allocation.dem import add_dem_gradient, dem_penalty
from dynarank.methods.base import Method, MethodSize
from dynarank.methods.config import DoRAConfig
from dynarank.methods.ranked import check_some_left, pruned_size, schedule_of


class DoRA(Method[DoRAConfig]):
    """Eq. 6 in every target layer, allocation by Eqs. 7 to 9, DEM (Eq. 10) until the freeze."""

    penalty_name = "dem"
    closed_form_penalty = True
    layers: dict[str, DoRALinear]

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        check_some_left(self.budget, len(find_linears(model, targets, self.head)))
        self.layers = inject(
            model,
            targets,
            r=self.budget.initial,
            alpha=self.config.alpha_at(self.budget.initial),
            dropout=self.config.dropout,
            exclude=self.head,
            start=self.config.init,
        )
        return model

    def allocator(self, total_steps: int) -> RankAllocator:
        return RankAllocator(
            self.layers,
            schedule_of(self.budget, total_steps, self.budget.schedule),
            beta=self.config.beta,
            regrow=self.budget.regrow,
            score=self.config.score,
            cost_aware=self.budget.unit == "parameters",
            min_rank=self.budget.min_rank,
            max_rank=self.budget.max_rank,
        )

    def lr_ratios(self) -> list[tuple[list[nn.Parameter], float]]:
        ratio = self.config.c_lr_ratio
        if ratio == 1:
            return []
        return [([layer.lora_c for layer in self.layers.values()], ratio)]

    def penalty(self, frozen: bool) -> Tensor | None:
        if frozen or not self.dem.eta:
            return None
        return self.dem.eta * dem_penalty(list(self.layers.values()))

    def add_penalty_gradient(self, frozen: bool) -> Tensor | None:
        if frozen or not self.dem.eta:
            return None
        return self.dem.eta * add_dem_gradient(list(self.layers.values()), self.dem.eta)

    def ranks(self) -> dict[str, int]:
        return {name: int(layer.active().sum()) for name, layer in self.layers.items()}

    def adapter_parameters(self) -> int:
        return sum(
            rank * component_parameters(self.layers[name]) for name, rank in self.ranks().items()
        )

    def adapted_size(self, nominal: int) -> MethodSize:
        return pruned_size(self.budget, len(self.layers), nominal)

    def export(self, folder: Path, base: str, task_type: str | None) -> None:
        # The run itself decides what is done with a model that is over its budget.
        write_peft_adapter(self.model, folder, base, task_type, self.head, over_budget=True)
