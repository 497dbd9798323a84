"""AdaLoRA (Zhang et al., ICLR 2023), by PEFT, driven as it must be, and its ranks made exact.

PEFT's `update_and_allocate` is called after every optimizer step, with T and the spans of our budget; its orthogonal
regularization is in the loss; its scores are in our checkpoints. Two faults are mended outside it: `kthvalue` fails where
nothing is to be pruned, and a threshold prunes too many on ties. So the triplets are chosen by rank, as ours are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from dynarank.methods.base import Method
from dynarank.methods.config import AdaLoRAConfig
from dynarank.methods.lora import ADAPTER


class ExactAllocator(PeftAllocator):  # type: ignore[misc]
    """PEFT's, keeping exactly the best `budget` triplets; ties go to the earlier layer, then the lower index."""

    agree: Callable[[Tensor], Tensor] = staticmethod(lambda keep: keep)

    def scores(self, model: nn.Module) -> dict[str, Tensor]:
        """A score a triplet, by the name of its layer's E, in model order; zeros before the first update."""
        found = {}
        for name, E in model.named_parameters():
            if f"lora_E.{ADAPTER}" not in name:
                continue
            if name not in self.exp_avg_ipt:
                found[name] = torch.zeros(len(E), device=E.device)
                continue
            a, b = (
                self._element_score(name.replace("lora_E", factor))
                for factor in ("lora_A", "lora_B")
            )
            vectors = torch.stack([a.mean(dim=1), b.mean(dim=0)], dim=1)  # (r, 2)
            found[name] = self._combine_ipt(self._element_score(name), vectors)  # (r)
        return found

    @torch.no_grad()
    def mask_to_budget(self, model: nn.Module, budget: int) -> dict[str, list[bool]]:
        scores = self.scores(model)
        kept_of_all = self.agree(top_components(torch.cat(list(scores.values())), budget))
        keep = kept_of_all.split([len(s) for s in scores.values()])
        for name, kept in zip(scores, keep, strict=True):
            model.get_parameter(name).masked_fill_(~kept[:, None], 0.0)
        return {name: kept.tolist() for name, kept in zip(scores, keep, strict=True)}


class AdaLoRAAllocation:
    """PEFT's allocation in the form of our `RankAllocator` (`dynarank.methods.base.Allocator`)."""

    def __init__(
        self, tuner: AdaLoraModel, layers: dict[str, Any], schedule: BudgetSchedule
    ) -> None:
        self.tuner, self.layers, self.schedule = tuner, layers, schedule
        self.sizes = [layer.lora_E[ADAPTER].shape[0] for layer in layers.values()]
        self.t, self.frozen = 0, False
        config = tuner.peft_config[ADAPTER]
        config.total_step, config.deltaT = schedule.total, schedule.interval
        config.tinit, config.tfinal = schedule.start_step, schedule.total - schedule.freeze_step
        tuner.rankallocator = ExactAllocator(tuner.model, config, ADAPTER)

    @property
    def agree(self) -> Callable[[Tensor], Tensor]:
        """See `dynarank.methods.base.Allocator`."""
        return self.tuner.rankallocator.agree

    @agree.setter
    def agree(self, choose: Callable[[Tensor], Tensor]) -> None:
        self.tuner.rankallocator.agree = choose

    @property
    def ema(self) -> Tensor:
        """The triplets' scores, (n); after the freeze PEFT forgets them: zeros."""
        return torch.cat(list(self.tuner.rankallocator.scores(self.tuner.model).values()))

    def step(self) -> bool:
        self.t += 1
        due = (
            not self.frozen
            and self.schedule.start_step < self.t
            and self.schedule.prunes_at(self.t)
        )
        self.tuner.update_and_allocate(self.t)
        self.frozen = self.t >= self.schedule.freeze_step
        return due

    def budget(self) -> float:
        """PEFT's own schedule, (1 - p)^3, a layer."""
        return float(self.tuner.rankallocator.budget_schedule(self.t)[0]) / len(self.layers)

    def active_count(self) -> Tensor:
        return torch.cat(
            [layer.lora_E[ADAPTER].detach().ravel() != 0 for layer in self.layers.values()]
        ).sum()

    def ranks(self) -> dict[str, int]:
        return {
            name: int((layer.lora_E[ADAPTER] != 0).sum()) for name, layer in self.layers.items()
        }

    def allowance(self, t: int) -> int:
        return int(self.tuner.rankallocator.budget_schedule(t)[0])

    def state_dict(self) -> dict[str, Any]:
        """What PEFT itself does not save: the smoothed scores."""
        inner = self.tuner.rankallocator
        averages = {
            name: dict(getattr(inner, name)) for name in ("exp_avg_ipt", "exp_avg_unc", "ipt")
        }
        return {
            "t": self.t,
            "frozen": self.frozen,
            "rank_pattern": self.tuner.peft_config[ADAPTER].rank_pattern,
            **averages,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.t, self.frozen = state["t"], state["frozen"]
        self.tuner.peft_config[ADAPTER].rank_pattern = state["rank_pattern"]
        for name in ("exp_avg_ipt", "exp_avg_unc", "ipt"):
            own = {
                key: value.to(self.tuner.model.get_parameter(key).device)
                for key, value in state[name].items()
            }
            setattr(self.tuner.rankallocator, name, own)


class AdaLoRA(Method[AdaLoRAConfig]):
    """Triplets of PEFT's AdaLoRA, from `budget.init` a layer to `budget.target` on average."""

    penalty_name = "orthogonality"
    layers: dict[str, Any]
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
            total_step=1,  # until the trainer knows it
        )
        self.tuner = AdaLoraModel(model, config, ADAPTER)
        self.layers = {name: model.get_submodule(name) for name in names}
        for name in self.head:  # PEFT froze it
            model.get_submodule(name).requires_grad_(True)
        return model

    def allocator(self, total_steps: int) -> AdaLoRAAllocation:
        budget = self.budget
        spans = (budget.warmup, budget.final, budget.interval)
        schedule = BudgetSchedule(
            budget.initial, budget.target, total_steps, *spans, "cubic_adalora"
        )
        return AdaLoRAAllocation(self.tuner, self.layers, schedule)

    def penalty(self, frozen: bool) -> Tensor | None:
        """PEFT's orthogonal regularization: the mean of ||A A^T - I|| and ||B^T B - I|| over all factors."""
        if not self.config.orthogonality:
            return None
        pairs = [
            (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER].mT) for layer in self.layers.values()
        ]
        grams = [rows @ rows.mT for pair in pairs for rows in pair]
        norms = [(gram - torch.eye(len(gram), device=gram.device)).norm() for gram in grams]
        return self.config.orthogonality * torch.stack(norms).mean()

    def ranks(self) -> dict[str, int]:
        return {
            name: int((layer.lora_E[ADAPTER] != 0).sum()) for name, layer in self.layers.items()
        }

    def adapter_parameters(self) -> int:
        ranks = self.ranks()
        return sum(
            rank * (self.layers[n].in_features + self.layers[n].out_features)
            for n, rank in ranks.items()
        )

    @torch.no_grad()
    def factors(self) -> dict[str, Factors]:
        """A and B of every layer as plain LoRA's: E and the scale in B, pruned triplets left out."""
        found = {}
        for name, layer in self.layers.items():
            E = layer.lora_E[ADAPTER].ravel()
            scale = layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER] + 1e-5)
            kept = E != 0
            found[name] = (
                layer.lora_A[ADAPTER][kept],
                layer.lora_B[ADAPTER][:, kept] * (scale * E[kept]),
            )
        return found

    def export(self, folder: Path, base: str, task_type: str) -> None:
        transposed = not any(
            isinstance(layer.base_layer, nn.Linear) for layer in self.layers.values()
        )
        write_factors(self.factors(), self.model, folder, base, task_type, self.head, transposed)
