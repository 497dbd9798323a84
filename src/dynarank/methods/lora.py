"""LoRA (Hu et al., ICLR 2022), by PEFT: the same rank in every target layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynarank.adapters.folding import Factors
from dynarank.adapters.inject import find_linears
from dynarank.adapters.peft_format import write_factors
from dynarank.methods.base import Method
from dynarank.methods.config import LoRAConfig

ADAPTER = "default"
"""PEFT's name of the adapter inside a layer."""


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

    @torch.no_grad()
    def factors(self) -> dict[str, Factors]:
        """A and B of every layer, the scale in B."""
        return {
            name: (_weight(layer.lora_A), layer.scaling[ADAPTER] * _weight(layer.lora_B))
            for name, layer in self.layers.items()
        }

    def export(self, folder: Path, base: str, task_type: str) -> None:
        transposed = not any(
            isinstance(layer.base_layer, nn.Linear) for layer in self.layers.values()
        )
        write_factors(self.factors(), self.model, folder, base, task_type, self.head, transposed)


def _weight(layers: Any) -> Tensor:
    weight: Tensor = layers[ADAPTER].weight
    return weight
