"""Methods that read the first batches before training: they place their components once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dynarank.adapters.inject import replace_module
from dynarank.methods.base import ConfigT, MethodSize
from dynarank.methods.components import ComponentMethod
from dynarank.methods.ranked import pruned_size


class PlacedMethod(ComponentMethod[ConfigT]):
    """A method whose layers hold room for `pool` components, of which `prepare` keeps some.

    What is kept is in the layers' masks, which every checkpoint holds: so a run that is resumed
    needs no batches again. c stays at one.
    """

    pool: int
    scale: float
    """s, which multiplies the layers' updates."""

    def put_room(
        self, model: nn.Module, targets: Sequence[str], pool: int, alpha: float, dropout: float
    ) -> None:
        """Wrap the targets with `pool` components whose scale is alpha / target, as LoRA's is.

        Args:
            model: changed in place.
            targets: the layers to adapt.
            pool: the most components that a layer may get.
            alpha: the scale's numerator.
            dropout: on the input of the adapters.
        """
        self.pool = pool
        self.scale = alpha / max(1, self.budget.target)
        # The layer divides by the components that it starts with, here the pool.
        self.wrap(model, targets, r=pool, alpha=self.scale * pool, dropout=dropout)
        self.fix_coefficients()

    @torch.no_grad()
    def place(self, A: Mapping[str, Tensor], B: Mapping[str, Tensor] | None = None) -> None:
        """Give every layer its components; the rest of its `pool` is masked out, and zero.

        Args:
            A: (k, d_in) by module name; k, the layer's rank, may differ.
            B: (d_out, k) by module name; None for zeros.
        """
        for name, layer in self.layers.items():
            k = len(A[name])
            for factor in (layer.lora_A, layer.lora_B, layer.lora_c, layer.mask):
                factor.zero_()
            layer.lora_A[:k] = A[name]
            if B is not None:
                layer.lora_B[:, :k] = B[name]
            layer.lora_c[:k] = 1
            layer.mask[:k] = True

    @contextmanager
    def bare(self) -> Iterator[dict[str, nn.Module]]:
        """Take the adapters out of the model inside a `with`; yield the base maps by module name.

        The model is in evaluation mode meanwhile.
        """
        model = self.model
        training = model.training
        for name, layer in self.layers.items():
            replace_module(model, name, layer.base)
        # Without dropout: what is decided once should not depend on a random draw.
        model.eval()
        try:
            yield {name: layer.base for name, layer in self.layers.items()}
        finally:
            for name, layer in self.layers.items():
                replace_module(model, name, layer)
            model.train(training)

    def adapted_size(self, nominal: int) -> MethodSize:
        size = pruned_size(self.budget, len(self.layers), nominal)
        return MethodSize(
            label=f"rank {self.budget.target} on average, {self.pool} at most",
            matrices=size.matrices,
            components=size.components,
            parameters=nominal,
            note=size.note,
        )
