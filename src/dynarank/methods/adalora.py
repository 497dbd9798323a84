"""AdaLoRA (Zhang et al., ICLR 2023), by PEFT, driven as it must be, and its ranks made exact.

PEFT's allocator is called after every optimizer step, with T and the spans of our budget; its
orthogonal regularization is in the loss; its scores are in our checkpoints. Two faults are mended
outside it: `kthvalue` fails where nothing is to be pruned, and a threshold prunes too many on
ties. So the triplets are chosen by rank, as ours are.

Legend: n triplets of the model, k triplets that a layer kept; a layer's E (r, 1), A (r, d_in) and
B (d_out, r).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, AdaLoraModel
from peft.tuners.adalora.layer import RankAllocator as PeftAllocator
from torch import Tensor, nn

from dynarank.adapters.folding import Factors
from dynarank.adapters.inject import find_linears
from dynarank.adapters.peft_format import write_factors
from dynarank.allocation.schedule import BudgetSchedule
from dynarank.allocation.selection import top_components
from dynarank.methods.base import Method, MethodSize
from dynarank.methods.config import AdaLoRAConfig
from dynarank.methods.ranked import ADAPTER, holds_transposed, pruned_size, schedule_of

AVERAGES = ("exp_avg_ipt", "exp_avg_unc", "ipt")
"""PEFT's running averages, each a tensor by parameter name, which PEFT itself does not save."""


class ExactAllocator(PeftAllocator):  # type: ignore[misc]
    """PEFT's allocator, keeping exactly the best `budget` triplets.

    Ties go to the earlier layer, then to the lower index.
    """

    agree: Callable[[Tensor], Tensor] = staticmethod(lambda keep: keep)

    def scores(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the triplets' scores, (r) by the name of their layer's E, in model order.

        They are zeros before the first update.
        """
        scores = {}
        for name, E in model.named_parameters():
            if f"lora_E.{ADAPTER}" not in name:
                continue
            if name in self.exp_avg_ipt:
                scores[name] = triplet_scores(self, name)
            else:
                scores[name] = torch.zeros(len(E), device=E.device)
        return scores

    @torch.no_grad()
    def mask_to_budget(self, model: nn.Module, budget: int) -> dict[str, list[bool]]:
        """Set E to zero in all but the `budget` best triplets; return what each layer keeps."""
        scores = self.scores(model)
        keep_of_all = self.agree(top_components(torch.cat(list(scores.values())), budget))
        keep_masks = keep_of_all.split([len(of_layer) for of_layer in scores.values()])
        pattern: dict[str, list[bool]] = {}
        for name, keep_mask in zip(scores, keep_masks, strict=True):
            model.get_parameter(name).masked_fill_(~keep_mask[:, None], 0.0)
            pattern[name] = keep_mask.tolist()
        return pattern


def triplet_scores(allocator: PeftAllocator, name_of_E: str) -> Tensor:
    """Return a layer's scores (r): that of E, and the means of those of A's rows and B's columns.

    Relies on PEFT's `_element_score`, sensitivity times uncertainty of every element of a
    parameter, and `_combine_ipt`, their sum over a triplet.
    """
    score_A = allocator._element_score(name_of_E.replace("lora_E", "lora_A"))  # (r, d_in)
    score_B = allocator._element_score(name_of_E.replace("lora_E", "lora_B"))  # (d_out, r)
    vectors = torch.stack([score_A.mean(dim=1), score_B.mean(dim=0)], dim=1)  # (r, 2)
    combined: Tensor = allocator._combine_ipt(allocator._element_score(name_of_E), vectors)
    return combined


class AdaLoRAAllocation:
    """PEFT's allocation in the form of our `RankAllocator` (`dynarank.methods.base.Allocator`).

    PEFT's own `AdaLoraModel.update_and_allocate` would keep the run's length and the kept triplets
    in the adapter's configuration. They are kept here instead, and its three cases stand in
    `step`.
    """

    def __init__(
        self, tuner: AdaLoraModel, layers: dict[str, Any], schedule: BudgetSchedule
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
            tfinal=schedule.total - schedule.freeze_step,
        )
        self.inner = ExactAllocator(self.model, config, ADAPTER)

    @property
    def agree(self) -> Callable[[Tensor], Tensor]:
        """See `dynarank.methods.base.Allocator`."""
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
        prunes = (
            not self.frozen
            and self.schedule.start_step < self.t
            and self.schedule.prunes_at(self.t)
        )
        freeze_step = self.schedule.freeze_step
        if self.t > freeze_step:
            self.inner.mask_using_rank_pattern(self.model, self.rank_pattern)
        else:
            last = self.t == freeze_step
            _, pattern = self.inner.update_and_allocate(self.model, self.t, force_mask=last)
            if pattern is not None:
                self.rank_pattern = pattern
            if last:
                self.inner.reset_ipt()
        self.frozen = self.t >= freeze_step
        return prunes

    def budget(self) -> float:
        """Return PEFT's own schedule, (1 - p)^3, a layer."""
        return self.allowance(self.t) / len(self.layers)

    def active_count(self) -> Tensor:
        triplets = [layer.lora_E[ADAPTER].detach().ravel() for layer in self.layers.values()]
        return (torch.cat(triplets) != 0).sum()

    def ranks(self) -> dict[str, int]:
        return triplet_ranks(self.layers)

    def allowance(self, t: int) -> int:
        return int(self.inner.budget_schedule(t)[0])

    def state_dict(self) -> dict[str, Any]:
        """Return what PEFT itself does not save: the smoothed scores, and what was kept."""
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
        names = find_linears(model, targets, self.head)
        config = AdaLoraConfig(
            init_r=self.budget.initial,
            target_r=self.budget.target,
            lora_alpha=self.config.alpha,
            lora_dropout=self.config.dropout,
            beta1=self.config.beta,
            beta2=self.config.beta,
            orth_reg_weight=self.config.orthogonality,
            target_modules=names,
            # PEFT wants a number; the run's length is not known before the allocator is made.
            total_step=1,
        )
        self.tuner = AdaLoraModel(model, config, ADAPTER)
        self.layers = {name: model.get_submodule(name) for name in names}
        for name in self.head:  # PEFT froze it
            model.get_submodule(name).requires_grad_(True)
        return model

    def allocator(self, total_steps: int) -> AdaLoRAAllocation:
        schedule = schedule_of(self.budget, total_steps, shape="cubic_adalora")
        return AdaLoRAAllocation(self.tuner, self.layers, schedule)

    def penalty(self, frozen: bool) -> Tensor | None:
        """Return PEFT's orthogonal regularization.

        It is the mean of ||A A^T - I|| and ||B^T B - I|| over the factors of all layers.
        """
        if not self.config.orthogonality:
            return None
        norms = []
        for layer in self.layers.values():
            for rows in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER].mT):  # (r, d)
                gram = rows @ rows.mT
                norms.append((gram - torch.eye(len(gram), device=gram.device)).norm())
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
            scale = layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER] + 1e-5)
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
