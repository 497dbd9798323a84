"""Global SVD: a larger LoRA, cut to the best singular components of the whole model at the freeze.

LoRA of rank `budget.init` trains until the freeze. There every layer's update D = s B A is
decomposed, and the K components of the model with the highest singular values S are kept (where
parameters count, those with the highest S^2 for each parameter). By Eckart and Young (1936), this
is the choice that changes all updates together least, in the Frobenius norm. Training goes on with
the factors of what is kept, and with Adam's moments in the new directions
(`dynarank.allocation.rotation` has the equations). With `budget.final=0` nothing is trained after
the cut: the scores are then those of compression after training.

The idea of a global threshold on singular values is PARA's (arXiv 2604.27796), which cuts after
training; the moments' treatment is derived here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.rotation import Rotation, rotation
from dynarank.methods.components import ComponentMethod
from dynarank.methods.config import GlobalSvdConfig
from dynarank.methods.protocols import Carry
from dynarank.methods.ranked import schedule_of


class GlobalSvdAllocator(RankAllocator):
    """Cuts once, at the freeze; until then the scores are the components' norms, for the log."""

    rotations: Sequence[Rotation] = ()
    """Of the layers, from the cut on; not kept in checkpoints."""

    def step(self) -> bool:
        self.t += 1
        if self.frozen:
            return False
        self.update()
        if self.t != self.schedule.freeze_step:
            return False
        # First, so that singular components are what is pruned. It replaces the scores, too.
        self._rotate()
        self.freeze(self.prune(self.allowance(self.t)))
        return True

    @torch.no_grad()
    def _rotate(self) -> None:
        rotations = []
        for layer in self.layers:
            turned = rotation(layer.lora_A, layer.lora_B, layer.scaling)
            layer.lora_A.copy_(turned.of_A(layer.lora_A))
            layer.lora_B.copy_(turned.of_B(layer.lora_B))
            rotations.append(turned)
        self.rotations = rotations
        # Squares and not values: their order is the same, and a square for each parameter is what
        # the squared error counts.
        squares = torch.cat([turned.squares for turned in rotations])
        self.ema = squares.to(self.ema.device, torch.float32)

    def carried(self) -> dict[Tensor, Carry]:
        """See `dynarank.methods.protocols.MovesParameters`."""
        maps: dict[Tensor, Carry] = {}
        for layer, turned in zip(self.layers, self.rotations, strict=True):
            maps[layer.lora_A] = Carry(
                value=turned.of_A,
                first=partial(turned.moment_of_A, squared=False),
                second=partial(turned.moment_of_A, squared=True),
            )
            maps[layer.lora_B] = Carry(
                value=turned.of_B,
                first=partial(turned.moment_of_B, squared=False),
                second=partial(turned.moment_of_B, squared=True),
            )
        return maps


class GlobalSvd(ComponentMethod[GlobalSvdConfig]):
    """LoRA of rank `budget.init`, cut to `budget.target` on average by singular values."""

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        r = self.budget.initial
        self.wrap(model, targets, r=r, alpha=self.config.alpha, dropout=self.config.dropout)
        self.fix_coefficients()
        return model

    def allocator(self, total_steps: int) -> GlobalSvdAllocator:
        return GlobalSvdAllocator(
            self.layers,
            schedule_of(self.budget, total_steps, shape="step"),  # nothing goes before the freeze
            beta=0.0,
            score="absolute",
            cost_aware=self.budget.unit == "parameters",
            min_rank=self.budget.min_rank,
            max_rank=self.budget.max_rank,
        )
