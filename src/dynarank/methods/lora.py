"""LoRA (Hu et al., ICLR 2022), by PEFT: ranks that are fixed from the start."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynarank.adapters.folding import Factors
from dynarank.adapters.inject import find_linears
from dynarank.adapters.layer import linear_shape
from dynarank.adapters.peft_format import write_factors
from dynarank.methods.base import Method, MethodSize, matched_note
from dynarank.methods.config import LoRAConfig
from dynarank.methods.found_ranks import found_ranks
from dynarank.methods.placement import place_ranks
from dynarank.methods.ranked import ADAPTER, holds_transposed


class LoRA(Method[LoRAConfig]):
    """Rank `budget.target` everywhere, or the same parameters where `method.placement` says."""

    layers: dict[str, Any]
    """PEFT's layers by name, those of rank 0 not among them."""
    fixed_ranks: dict[str, int]
    """The rank of every target matrix, in model order; 0 where it is not adapted."""

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        import peft

        self.fixed_ranks = self.choose_ranks(model, find_linears(model, targets, self.head))
        self._check_bounds()
        # PEFT refuses a rank of 0: such a matrix is left without an adapter.
        adapted = {name: rank for name, rank in self.fixed_ranks.items() if rank}
        names = list(adapted)
        largest = max(adapted.values())
        scale = self._scale()
        # PEFT reads the keys of both patterns as regular expressions.
        # It would also let a key fit the end of a longer name; the ^ binds it to the whole name.
        rank_pattern = {"^" + re.escape(name): rank for name, rank in adapted.items()}
        # PEFT divides by a matrix's own rank: so every component has the same scale.
        alpha_pattern = {key: scale * rank for key, rank in rank_pattern.items()}
        config = peft.LoraConfig(
            r=largest,
            lora_alpha=scale * largest,
            rank_pattern=rank_pattern,
            alpha_pattern=alpha_pattern,
            lora_dropout=self.config.dropout,
            target_modules=names,
        )
        # Not `get_peft_model`: it wraps the model, and puts a prefix before every name in it.
        peft.inject_adapter_in_model(config, model, ADAPTER)
        self.layers = {name: model.get_submodule(name) for name in names}
        for name in self.head:  # PEFT froze it
            model.get_submodule(name).requires_grad_(True)
        return model

    def _check_bounds(self) -> None:
        """Raise `ValueError` where the ranks are outside the budget's limits."""
        largest, limit = max(self.fixed_ranks.values()), self.budget.max_rank
        if limit is not None and largest > limit:
            raise ValueError(
                f"budget.max_rank = {limit}: these ranks go up to {largest}. Set it to that, or to "
                "null for no limit"
            )
        smallest = min(self.fixed_ranks.values())
        if smallest < self.budget.min_rank:
            raise ValueError(
                f"budget.min_rank = {self.budget.min_rank}: these ranks go down to {smallest}. Set "
                "it to that, or take another method.placement"
            )

    def _scale(self) -> float:
        """Return s, by which every component is multiplied."""
        target = max(1.0, self.budget.target)
        if self.config.alpha_over == "sqrt":  # as in rsLoRA
            return self.config.alpha / math.sqrt(target)
        return self.config.alpha / target

    def lr_ratios(self) -> list[tuple[list[nn.Parameter], float]]:
        ratio = self.config.b_lr_ratio
        if ratio == 1:
            return []
        weights_of_B = [layer.lora_B[ADAPTER].weight for layer in self.layers.values()]
        return [(weights_of_B, ratio)]

    def choose_ranks(self, model: nn.Module, names: Sequence[str]) -> dict[str, int]:
        """Return the rank of each named matrix, as the budget and the placement have it.

        Raises:
            ValueError: the placement fits no matrix, or the budget pays for no component; the
                ranks of another run are not of these matrices, or not at this budget.
        """
        costs = {name: sum(linear_shape(model.get_submodule(name))) for name in names}
        if self.config.rank_pattern_from is not None:
            return found_ranks(self.config.rank_pattern_from, costs, self.budget.target)
        return place_ranks(
            costs,
            target=self.budget.target,
            placement=self.config.placement,
            pool=self.budget.initial,
            seed=self.config.placement_seed,
        )

    def ranks(self) -> dict[str, int]:
        return dict(self.fixed_ranks)

    def adapted_size(self, nominal: int) -> MethodSize:
        parameters = self.adapter_parameters()
        distinct = sorted({rank for rank in self.fixed_ranks.values() if rank})
        return MethodSize(
            label=f"rank {' or '.join(map(str, distinct))}",
            matrices=len(self.layers),
            components=sum(self.fixed_ranks.values()),
            parameters=parameters,
            note=matched_note(parameters, nominal),
        )

    @torch.no_grad()
    def factors(self) -> dict[str, Factors]:
        """Return A (k, d_in) and B (d_out, k) of every layer, the scale in B."""
        factors = {}
        for name, layer in self.layers.items():
            lora_A = layer.lora_A[ADAPTER].weight
            lora_B = layer.lora_B[ADAPTER].weight
            factors[name] = (lora_A, layer.scaling[ADAPTER] * lora_B)
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
