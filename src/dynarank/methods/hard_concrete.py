"""Gates between 0 and 1 that are exactly 0 or 1 with positive probability (Louizos et al., 2018).

Legend: a = log alpha, (l, r) the stretch, u uniform in (0, 1).

    s = sigmoid(log u - log(1 - u) + a)                  z = min(1, max(0, s (r - l) + l))
    P(z > 0) = sigmoid(a - log(-l / r))                  the expected L0 norm, closed form
    without noise: z = min(1, max(0, sigmoid(a) (r - l) + l))

The stretch is that of Diff Pruning (Guo et al., 2021) and its code, (-1.5, 1.5), without a
temperature. Louizos et al. take (-0.1, 1.1) and a temperature of 2/3, which leave an undecided
gate between 0 and 1 twice as often.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LEFT, RIGHT = -1.5, 1.5


def sample_gates(log_alpha: Tensor) -> Tensor:
    """Return one draw of every gate, differentiable by log alpha."""
    # Neither logarithm may be infinite.
    u = torch.rand_like(log_alpha).clamp(1e-6, 1 - 1e-6)
    noise = u.log() - (1 - u).log()
    return _stretched(torch.sigmoid(noise + log_alpha))


def sure_gates(log_alpha: Tensor) -> Tensor:
    """Return the gates without noise."""
    return _stretched(torch.sigmoid(log_alpha))


def _stretched(s: Tensor) -> Tensor:
    """Stretch numbers in (0, 1) to (l, r) and cut them to [0, 1]: the ends have a probability."""
    return (s * (RIGHT - LEFT) + LEFT).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """Return the probability of every gate that it is not zero."""
    return torch.sigmoid(log_alpha - math.log(-LEFT / RIGHT))


class GatedDifference(nn.Module):
    """A weight plus a gated difference; a parametrization of torch's.

    After `settle` it is the weight plus the difference where the mask has it.
    """

    mask: Tensor

    def __init__(self, weight: Tensor, log_alpha: float) -> None:
        super().__init__()
        self.difference = nn.Parameter(torch.zeros_like(weight))
        # A vector, whatever the weight's shape: vectors do not decay, nor do the authors' gates.
        self.log_alpha = nn.Parameter(torch.full_like(weight, log_alpha).flatten())
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))
        self.final = False

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.present()

    def present(self) -> Tensor:
        """Return the difference as it is now, in the weight's shape."""
        if self.final:
            return torch.where(self.mask, self.difference, 0.0)
        gates = sample_gates if self.training else sure_gates
        return gates(self.log_alpha).view_as(self.difference) * self.difference

    @torch.no_grad()
    def settle(self, keep: Tensor) -> Tensor:
        """Keep the differences, each times its sure gate, where `keep` has them.

        Returns what they were multiplied by.
        """
        factor = sure_gates(self.log_alpha).view_as(keep) * keep
        self.difference.mul_(factor)
        self.mask.copy_(keep)
        self.end_gates(True)
        return factor

    def end_gates(self, final: bool) -> None:
        """Say whether the gates are gone; they do not train then.

        DDP waits for the gradients of all that trains, and gates that are gone have none.
        """
        self.final = final
        self.log_alpha.requires_grad_(not final)
