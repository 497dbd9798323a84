"""LoRA (Hu et al., ICLR 2022), by PEFT: the same rank in every target layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynarank.adapters.folding import Factors
from dynarank.adapters.inject import find_linears
from dynarank.adapters.peft_format import write_factors
from dynarank.methods.base import Method, MethodSize, matched_note
from dynarank.methods.config import LoRAConfig
from dynarank.methods.ranked import ADAPTER, holds_transposed


class LoRA(Method[LoRAConfig]):
    """Rank `budget.target` everywhere."""

    layers: dict[str, Any]
    """PEFT's layers by name."""

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        import peft

        names = find_linears(model, targets, self.head)
        config = peft.LoraConfig(
            r=self.budget.target,
            lora_alpha=self.config.alpha,
            lora_dropout=self.config.dropout,
            target_modules=names,
        )
        peft.inject_adapter_in_model(config, model, ADAPTER)
        self.layers = {name: model.get_submodule(name) for name in names}
        for name in self.head:  # PEFT froze it
            model.get_submodule(name).requires_grad_(True)
        return model

    def ranks(self) -> dict[str, int]:
        return dict.fromkeys(self.layers, self.budget.target)

    def adapted_size(self, nominal: int) -> MethodSize:
        rank, parameters = self.budget.target, self.adapter_parameters()
        return MethodSize(
            label=f"rank {rank}",
            matrices=len(self.layers),
            components=rank * len(self.layers),
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
