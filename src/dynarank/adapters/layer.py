"""The adapter layer of dynamic rank distribution (Mao et al., ACL 2024), not of weight-decomposed DoRA.

Legend: r' components a layer starts with, d_in and d_out the sizes of the linear map that it adapts, s = alpha / r'.

    y = W0 x + s B (c * (A dropout(x)))        A (r', d_in), B (d_out, r'), c (r')                          (Eq. 6)

Component i is the rank-one matrix c_i B[:, i] A[i, :]. It is pruned by c_i := 0 and, once the ranks are frozen, by
`mask[i] = False`: from then on it is exactly zero in every forward pass and receives no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynarank.adapters import STARTS


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a linear map that can be adapted: an `nn.Linear` or transformers' `Conv1D`."""
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    # By shape, so that the library needs no transformers: Conv1D holds its weight as (d_in, d_out) and d_out as `nf`.
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(d_in, d_out) of a linear map. Raises `TypeError` for any other module."""
    if isinstance(module, nn.Linear):  # also 4-bit linears, whose packed weight has another shape
        return module.in_features, module.out_features
    if _is_conv1d(module):
        weight = module.weight
        assert isinstance(weight, Tensor)
        d_in, d_out = weight.shape
        return d_in, d_out
    raise TypeError(f"cannot adapt a {type(module).__name__}: it is neither nn.Linear nor Conv1D")


class DoRALinear(nn.Module):
    """A frozen linear map plus r' prunable rank-one components (Eq. 6). Starts equal to the map alone (c = 0).

    Shapes: x (..., d_in) -> (..., d_out), in the base map's dtype. A and B start Kaiming-uniform, as in the authors'
    code. A, B and c are float32 under any precision of the base map, and stay so under `.to`, `.half` and `.bfloat16`:
    in bfloat16, c would not move at usual learning rates.

    Args:
        start: paper (A and B Kaiming-uniform, c = 0), or lora (A as LoRA's, B = 0, c = 1), which also starts equal to
            the map alone, and whose B learns from the first step.

    Raises:
        TypeError: `base` is not a linear map.
        ValueError: `r` < 1, `alpha` <= 0, `dropout` outside [0, 1), or an unknown `start`.
    """

    mask: Tensor

    def __init__(
        self,
        base: nn.Module,
        r: int,
        alpha: float = 8.0,
        dropout: float = 0.0,
        start: str = "paper",
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear_shape(base)
        if r < 1:
            raise ValueError(f"r = {r}: a layer starts with at least 1 component")
        if alpha <= 0:
            raise ValueError(f"alpha = {alpha}: must be above 0")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout = {dropout}: must lie in [0, 1)")
        if start not in STARTS:
            raise ValueError(f"start = {start!r}: must be one of {', '.join(STARTS)}")
        self.r, self.alpha = r, alpha
        self.scaling = alpha / r  # stays when components go
        self.base = base.requires_grad_(False)
        self.dropout = nn.Dropout(dropout)

        device = next(base.parameters()).device
        self.lora_A = nn.Parameter(
            torch.empty(r, self.in_features, device=device, dtype=torch.float32)
        )
        self.lora_B = nn.Parameter(
            torch.empty(self.out_features, r, device=device, dtype=torch.float32)
        )
        self.lora_c = nn.Parameter(torch.zeros(r, device=device, dtype=torch.float32))
        self.register_buffer("mask", torch.ones(r, device=device, dtype=torch.bool))
        nn.init.kaiming_uniform_(self.lora_A, a=0 if start == "paper" else math.sqrt(5))
        if start == "paper":
            nn.init.kaiming_uniform_(self.lora_B)
        else:
            nn.init.zeros_(self.lora_B)
            nn.init.ones_(self.lora_c)

    @property
    def weight(self) -> Tensor:
        """The base map's, where model code looks at a linear map's dtype or device."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def coefficients(self) -> Tensor:
        """c with the frozen-out components at exactly zero, (r')."""
        return torch.where(self.mask, self.lora_c, torch.zeros_like(self.lora_c))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        h = F.linear(self.dropout(x.to(self.lora_A.dtype)), self.lora_A)  # (..., r')
        return (y + F.linear(h * (self.scaling * self.coefficients()), self.lora_B)).to(
            y.dtype
        )  # rounded once

    def delta_weight(self) -> Tensor:
        """The update s sum_i c_i B[:, i] A[i, :] as one matrix, (d_out, d_in). For merging and for tests."""
        return (self.lora_B * (self.scaling * self.coefficients())) @ self.lora_A

    def active(self) -> Tensor:
        """Which components are not zero, (r') bool. Their number is the layer's rank."""
        return self.mask & (self.lora_c != 0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DoRALinear:
        def never_narrower(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return (
                moved if moved.element_size() >= tensor.element_size() else tensor.to(moved.device)
            )

        if recurse:
            self.base._apply(fn)
        super()._apply(never_narrower, recurse=False)
        return self

    def extra_repr(self) -> str:
        return f"d_in={self.in_features}, d_out={self.out_features}, r={self.r}, scaling={self.scaling:g}"
