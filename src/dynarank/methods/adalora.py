"""AdaLoRA (Zhang et al., ICLR 2023), by PEFT, driven as it must be, and its ranks made exact.

PEFT's allocator is called after every optimizer step, with T and the spans of our budget; its
orthogonal regularization is in the loss; its scores are in our checkpoints. Two faults are mended
outside it: `kthvalue` fails where nothing is to be pruned, and a threshold prunes too many on
ties. So the triplets are chosen by rank, as ours are.

The regularization's weight is PEFT's, 0.5; the authors' runs on GLUE have 0.1 to 0.3. E is a matrix
of one column, which decays, as in their code.

Legend: n triplets of the model, k triplets that a layer kept; a layer's E (r, 1), A (r, d_in) and
B (d_out, r).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, AdaLoraModel
from torch import Tensor, nn

from dynarank.adapters.folding import Factors
from dynarank.adapters.inject import find_linears
from dynarank.adapters.peft_format import write_factors
from dynarank.allocation.schedule import BudgetSchedule
from dynarank.methods.base import Method, MethodSize
from dynarank.methods.config import AdaLoRAConfig
from dynarank.methods.exact_adalora import ExactAllocator
from dynarank.methods.ranked import (
    ADAPTER,
    check_some_left,
    holds_transposed,
    pruned_size,
    schedule_of,
)
from dynarank.rounding import round_half_up

log = logging.getLogger(__name__)

AVERAGES = ("exp_avg_ipt", "exp_avg_unc", "ipt")
"""PEFT's running averages, each a tensor by parameter name, which PEFT itself does not save."""


class AdaLoRAAllocation:
    """PEFT's allocation as a `dynarank.methods.protocols.Allocator`, as our `RankAllocator` is one.

    PEFT's own `AdaLoraModel.update_and_allocate` would keep the run's length and the kept triplets
    in the adapter's configuration. They are kept here instead, and its three cases stand in
    `step`.
    """

    def __init__(
        self,
        tuner: AdaLoraModel,
        layers: dict[str, Any],
        schedule: BudgetSchedule,
        cost_aware: bool = False,
    ) -> None:
        self.model: nn.Module = tuner.model
        self.layers = layers
        self.schedule = schedule
        self.sizes = [layer.lora_E[ADAPTER].shape[0] for layer in layers.values()]
        self.t = 0
        self.frozen = False
        self.rank_pattern: dict[str, list[bool]] | None = None
        """What the last pruning kept, by the name of each layer's E."""
        config = replace(
            tuner.peft_config[ADAPTER],
            total_step=schedule.total,
            deltaT=schedule.interval,
            tinit=schedule.start_step,
            # PEFT's tfinal is a number of steps, not the step of the freeze.
            tfinal=schedule.total - schedule.freeze_step,
        )
        self.inner = ExactAllocator(self.model, config, ADAPTER)
        # PEFT's own is a whole rank for each layer, which a fractional target is not.
        self.inner.target_bgt = round_half_up(schedule.target * len(layers))
        if cost_aware:
            self.inner.target_bgt = schedule.target * len(layers)  # rounded in parameters
            costs = [layer.in_features + layer.out_features for layer in layers.values()]
            cost_of_layer = torch.tensor(costs, dtype=torch.float32)
            sizes = torch.tensor(self.sizes)
            self.inner.costs = torch.repeat_interleave(cost_of_layer, sizes)  # (n)

    @property
    def agree(self) -> Callable[[Tensor], Tensor]:
        """See `dynarank.methods.protocols.Allocator`."""
        return self.inner.agree

    @agree.setter
    def agree(self, choose: Callable[[Tensor], Tensor]) -> None:
        self.inner.agree = choose

    @property
    def ema(self) -> Tensor:
        """The triplets' scores, (n); zeros after the freeze, when PEFT forgets them."""
        return torch.cat(list(self.inner.scores(self.model).values()))

    def step(self) -> bool:
        self.t += 1
        freeze_step = self.schedule.freeze_step
        is_after_start = self.schedule.start_step < self.t  # PEFT does not prune at tinit
        prunes = not self.frozen and is_after_start and self.schedule.prunes_at(self.t)
        if self.t > freeze_step:
            # At every step, since the optimizer's momentum moves an E that was set to zero.
            self.inner.mask_using_rank_pattern(self.model, self.rank_pattern)
        else:
            # The last pruning need not fall on the interval, and must happen.
            is_last = self.t == freeze_step
            # At every step, for it scores by the gradients, too. It gives a pattern if it prunes.
            _, pattern = self.inner.update_and_allocate(self.model, self.t, force_mask=is_last)
            if pattern is not None:
                self.rank_pattern = pattern
            if is_last:
                self.inner.reset_ipt()  # frees three numbers a parameter
        self.frozen = self.t >= freeze_step
        return prunes

    def budget(self) -> float:
        """Return PEFT's own schedule, (1 - p)^3, a layer."""
        return float(self.inner.budget_schedule(self.t)[0]) / len(self.layers)

    def active_count(self) -> Tensor:
        triplets = [layer.lora_E[ADAPTER].detach().ravel() for layer in self.layers.values()]
        return (torch.cat(triplets) != 0).sum()

    def ranks(self) -> dict[str, int]:
        return triplet_ranks(self.layers)

    def allowance(self, t: int) -> int:
        triplets = self.inner.budget_schedule(t)[0]
        return int(triplets) if self.inner.costs is None else self.inner.parameters(triplets)

    def state_dict(self) -> dict[str, Any]:
        """Return what PEFT itself does not save: the smoothed scores, and what was kept."""
        # The dicts alone are copied: PEFT replaces their tensors, and changes none in place.
        averages = {name: dict(getattr(self.inner, name)) for name in AVERAGES}
        return {
            "t": self.t,
            "frozen": self.frozen,
            "rank_pattern": self.rank_pattern,
            **averages,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.t = state["t"]
        self.frozen = state["frozen"]
        self.rank_pattern = state["rank_pattern"]
        for average in AVERAGES:
            on_device = {}
            for name, value in state[average].items():
                on_device[name] = value.to(self.model.get_parameter(name).device)
            setattr(self.inner, average, on_device)


class AdaLoRA(Method[AdaLoRAConfig]):
    """Triplets of PEFT's AdaLoRA, from `budget.init` a layer to `budget.target` on average."""

    penalty_name = "orthogonality"
    layers: dict[str, Any]
    """PEFT's layers by name."""
    tuner: AdaLoraModel

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        self.config.check_budget(self.budget)
        names = find_linears(model, targets, self.head)
        check_some_left(self.budget, model, names)
        config = AdaLoraConfig(
            init_r=self.budget.initial,
            # PEFT wants a whole number. The allocation states the exact one.
            target_r=max(1, round(self.budget.target)),
            lora_alpha=self.config.alpha,
            lora_dropout=self.config.dropout,
            beta1=self.config.beta,
            beta2=self.config.beta,
            orth_reg_weight=self.config.orthogonality,
            target_modules=names,
            # PEFT wants a number; the run's length is not known before the allocator is made.
            total_step=1,
        )
        # It puts its layers into `model` itself, which is trained without PEFT's wrapper.
        self.tuner = AdaLoraModel(model, config, ADAPTER)
        self.layers = {name: model.get_submodule(name) for name in names}
        for name in self.head:  # PEFT froze it
            model.get_submodule(name).requires_grad_(True)
        return model

    def allocator(self, total_steps: int) -> AdaLoRAAllocation:
        schedule = schedule_of(self.budget, total_steps, shape="cubic_adalora")
        # PEFT scores a step's triplets before the freeze alone: without a score, all are alike.
        if schedule.freeze_step < 2 and self.budget.target < self.budget.initial:
            log.warning(
                "budget.final = %g: of %d steps, the ranks are final after step %d, before "
                "AdaLoRA has scores: the first matrices keep theirs. Train longer, or lower it",
                self.budget.final,
                total_steps,
                schedule.freeze_step,
            )
        cost_aware = self.budget.unit == "parameters"
        return AdaLoRAAllocation(self.tuner, self.layers, schedule, cost_aware)

    def penalty(self, frozen: bool) -> Tensor | None:
        """Return PEFT's orthogonal regularization.

        It is the mean of ||A A^T - I|| and ||B^T B - I|| over the factors of all layers.
        """
        if not self.config.orthogonality:
            return None
        # PEFT adds this in `AdaLoraModel.forward`, which is not called: the model inside is.
        norms = []
        for layer in self.layers.values():
            for rows in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER].mT):  # (r, d)
                gram = rows @ rows.mT  # (r, r)
                identity = torch.eye(len(gram), device=gram.device)
                norms.append((gram - identity).norm())
        return self.config.orthogonality * torch.stack(norms).mean()

    def ranks(self) -> dict[str, int]:
        return triplet_ranks(self.layers)

    def adapter_parameters(self) -> int:
        count = 0
        for name, rank in self.ranks().items():
            layer = self.layers[name]
            count += rank * (layer.in_features + layer.out_features)
        return count

    def adapted_size(self, nominal: int) -> MethodSize:
        return pruned_size(self.budget, len(self.layers), nominal)

    @torch.no_grad()
    def factors(self) -> dict[str, Factors]:
        """Return A (k, d_in) and B (d_out, k) of every layer, E and the scale in B."""
        factors = {}
        for name, layer in self.layers.items():
            E = layer.lora_E[ADAPTER].ravel()
            # With the small number that PEFT's forward pass adds.
            scale = layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER] + 1e-5)
            # Pruned triplets are zero to the bit: `step` masks them after every update.
            kept = E != 0
            lora_A = layer.lora_A[ADAPTER][kept]
            lora_B = layer.lora_B[ADAPTER][:, kept] * (scale * E[kept])
            factors[name] = (lora_A, lora_B)
        return factors

    def export(self, folder: Path, base: str, task_type: str | None) -> None:
        write_factors(
            factors=self.factors(),
            model=self.model,
            folder=folder,
            base=base,
            task_type=task_type,
            head=self.head,
            transposed=holds_transposed(self.layers),
        )


def triplet_ranks(layers: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of triplets that are not zero, by layer."""
    return {name: int((layer.lora_E[ADAPTER] != 0).sum()) for name, layer in layers.items()}
