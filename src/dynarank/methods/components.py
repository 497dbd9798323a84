"""What the methods share whose layers are `DoRALinear`: counting, sizes and export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from dynarank.adapters.inject import find_linears, inject
from dynarank.adapters.layer import DoRALinear
from dynarank.adapters.peft_format import write_peft_adapter
from dynarank.allocation.components import component_parameters
from dynarank.methods.base import ConfigT, Method, MethodSize
from dynarank.methods.ranked import check_some_left, pruned_size


class ComponentMethod(Method[ConfigT]):
    """A method of rank-one components, whose ranks are the components that are not zero."""

    layers: dict[str, DoRALinear]

    def wrap(
        self, model: nn.Module, targets: Sequence[str], r: int, alpha: float, dropout: float
    ) -> None:
        """Put r components into every target layer: A random, B zero and c one, as in LoRA.

        Args:
            model: changed in place.
            targets: the layers to adapt.
            r: components of each layer.
            alpha: the scale's numerator: s = alpha / r.
            dropout: on the input of the adapters.

        Raises:
            ValueError: the budget leaves no component in the end.
        """
        check_some_left(self.budget, model, find_linears(model, targets, self.head))
        self.layers = inject(
            model,
            targets,
            r=r,
            alpha=alpha,
            dropout=dropout,
            exclude=self.head,
            start="lora",
        )

    def fix_coefficients(self) -> None:
        """Leave c at one: A and B alone train, as in LoRA."""
        for layer in self.layers.values():
            layer.lora_c.requires_grad_(False)

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
