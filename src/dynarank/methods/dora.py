"""DoRA, dynamic rank distribution (Mao et al., ACL 2024): prunable rank-one components.

The mathematics is in `dynarank.adapters.layer` (Eq. 6) and `dynarank.allocation` (Eqs. 7 to 10).
This file joins it to a run's settings. `DynaRank` is the same under this library's own recipe.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from dynarank.adapters.inject import find_linears, inject
from dynarank.adapters.layer import DoRALinear
from dynarank.adapters.peft_format import write_peft_adapter
from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.allocator_checks import cannot_allocate
from dynarank.allocation.components import component_parameters
from dynarank.allocation.controls import scores_for_ranks, shuffle_ranks
from dynarank.allocation.dem import add_dem_gradient, dem_penalty
from dynarank.allocation.orthogonality import add_orthogonality_gradient
from dynarank.allocation.shorter_steps import rate_factor
from dynarank.methods.base import Method, MethodSize
from dynarank.methods.dora_config import DoRAConfig, DynaRankConfig
from dynarank.methods.found_ranks import found_ranks
from dynarank.methods.ranked import check_some_left, pruned_size, schedule_of

log = logging.getLogger(__name__)


class DoRA(Method[DoRAConfig]):
    """Eq. 6 in every target layer, allocation by Eqs. 7 to 9, DEM (Eq. 10) until the freeze."""

    penalty_name = "dem"
    closed_form_penalty = True
    layers: dict[str, DoRALinear]
    _allocator: RankAllocator | None = None

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        initial = self.budget.initial
        check_some_left(self.budget, model, find_linears(model, targets, self.head))
        scale = self.config.scale(initial, self.budget.target)
        self.layers = inject(
            model,
            targets,
            r=initial,
            alpha=scale * initial,  # the layer divides by the components that it starts with
            dropout=self.config.dropout,
            exclude=self.head,
            start=self.config.init,
        )
        if not self.config.train_c:
            for layer in self.layers.values():
                layer.lora_c.requires_grad_(False)
        return model

    def allocator(self, total_steps: int) -> RankAllocator:
        score = self.config.score
        cost_aware = self.budget.unit == "parameters"
        warning = cannot_allocate(score, self.budget.initial, self.budget.target, cost_aware)
        if warning:
            log.warning("method.score=%s: %s", score, warning)
        fixed_scores = None
        if score == "shuffled":
            fixed_scores = self._shuffled_scores()
            # The allocator has no score of that name, and reads none where scores are fixed.
            score = "random"
        self._allocator = RankAllocator(
            self.layers,
            schedule_of(self.budget, total_steps, self.budget.schedule),
            beta=self.config.beta,
            regrow=self.budget.regrow,
            score=score,
            cost_aware=cost_aware,
            min_rank=self.budget.min_rank,
            max_rank=self.budget.max_rank,
            seed=self.config.score_seed,
            fixed_scores=fixed_scores,
        )
        return self._allocator

    def _shuffled_scores(self) -> Tensor:
        """Return scores that keep another run's ranks, permuted over the matrices of a shape.

        Raises:
            ValueError: the run's ranks are of other matrices, of another budget, or above what
                these start with.
        """
        assert self.config.rank_pattern_from is not None
        costs: dict[str, int] = {}
        shapes: dict[str, tuple[int, int]] = {}
        for name, layer in self.layers.items():
            costs[name] = component_parameters(layer)
            shapes[name] = (layer.in_features, layer.out_features)
        # `found_ranks` refuses another budget: the schedule would prune more than the ranks leave,
        # or would leave other components beside them.
        ranks = found_ranks(self.config.rank_pattern_from, costs, self.budget.target)
        shuffled = shuffle_ranks(ranks, shapes, self.config.score_seed)
        counts_parameters = self.budget.unit == "parameters"
        return scores_for_ranks(
            ranks=[shuffled[name] for name in self.layers],
            sizes=[layer.r for layer in self.layers.values()],
            costs=list(costs.values()) if counts_parameters else None,
            seed=self.config.score_seed,
        )

    def observe_gradients(self) -> None:
        if self._allocator is not None:
            self._allocator.observe()

    def lr_ratios(self) -> list[tuple[list[nn.Parameter], float]]:
        ratios = []
        layers = self.layers.values()
        if self.config.c_lr_ratio != 1:
            ratios.append(([layer.lora_c for layer in layers], self.config.c_lr_ratio))
        if self.config.b_lr_ratio != 1:
            ratios.append(([layer.lora_B for layer in layers], self.config.b_lr_ratio))
        return ratios

    def penalty(self, frozen: bool) -> Tensor | None:
        # DEM ends with the freeze, as in the authors' code.
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


class DynaRank(DoRA):
    """This library's recipe: the same machinery under settings of its own, and never DEM.

    DEM evens out the variances of A and B, which a start with B = 0 and fixed c does not need.
    """

    penalty_name = "penalty"
    config: DynaRankConfig

    def rate_factor(self, total_steps: int) -> Callable[[int], float] | None:
        """Return (b_T / b(t))^rate_power; None where it is 1 throughout."""
        power = self.config.rate_power
        if power == 0 or self.budget.initial == self.budget.target:
            return None
        schedule = schedule_of(self.budget, total_steps, self.budget.schedule)
        return lambda step: rate_factor(schedule, step, power)

    def penalty(self, frozen: bool) -> Tensor | None:
        return None

    def add_penalty_gradient(self, frozen: bool) -> Tensor | None:
        # After the freeze too, as in AdaLoRA: the directions are to stay at length one.
        weight = self.config.orthogonality
        if not weight:
            return None
        return weight * add_orthogonality_gradient(list(self.layers.values()), weight)
