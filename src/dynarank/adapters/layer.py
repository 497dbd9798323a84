"""The adapter layer of dynamic rank distribution (Mao et al., ACL 2024).

It is not the layer of weight-decomposed DoRA. Legend: r' components that a layer starts with, d_in
and d_out the sizes of the linear map that it adapts, s = alpha / r'.

    y = W0 x + s B (c * (A dropout(x)))        A (r', d_in), B (d_out, r'), c (r')          (Eq. 6)

Component i is the rank-one matrix c_i B[:, i] A[i, :]. It is pruned by c_i := 0. Once the ranks are
frozen, `mask[i]` is False: from then on the component is exactly zero in every forward pass and
receives no gradient.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynarank.adapters import check_settings, fast_path
from dynarank.adapters.linears import is_linear, linear_shape, stores_transposed
from dynarank.adapters.narrowing import Move, never_narrow
from dynarank.adapters.progress import AllocationProgress

__all__ = ["DoRALinear", "is_linear", "linear_shape", "stores_transposed"]


class DoRALinear(nn.Module):
    """A frozen linear map plus r' prunable rank-one components (Eq. 6).

    It starts equal to the map alone. Shapes: x (..., d_in) -> (..., d_out), in the base map's
    dtype. A and B start Kaiming-uniform, as in the authors' code. A, B and c are float32 under any
    precision of the base map, and stay so under `.to`, `.half` and `.bfloat16`: in bfloat16, c
    would not move at usual learning rates.

    Args:
        start: `paper` (A and B Kaiming-uniform, c = 0), or `lora` (A as LoRA's, B = 0, c = 1),
            which also starts equal to the map alone, and whose B learns from the first step.

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
        check_settings(r=r, alpha=alpha, dropout=dropout, start=start)
        self.r = r
        self.alpha = alpha
        self.scaling = alpha / r  # it stays when components go
        self.progress: AllocationProgress | None = None
        self.base = base.requires_grad_(False)
        self.dropout = nn.Dropout(dropout)

        # Quantized maps of some libraries keep all that they have in buffers.
        device = next(chain(base.parameters(), base.buffers())).device
        lora_A = torch.empty(r, self.in_features, device=device, dtype=torch.float32)
        lora_B = torch.empty(self.out_features, r, device=device, dtype=torch.float32)
        self.lora_A = nn.Parameter(lora_A)
        self.lora_B = nn.Parameter(lora_B)
        self.lora_c = nn.Parameter(torch.zeros(r, device=device, dtype=torch.float32))
        self.register_buffer("mask", torch.ones(r, device=device, dtype=torch.bool))
        self._mask_read: Tensor | None = None
        self._mask_version = -1  # below any tensor's
        self._mask_has_pruned = False
        self._initialize(start)

    def _initialize(self, start: str) -> None:
        nn.init.kaiming_uniform_(self.lora_A, a=0 if start == "paper" else math.sqrt(5))
        if start == "paper":
            nn.init.kaiming_uniform_(self.lora_B)
        else:
            nn.init.zeros_(self.lora_B)
            nn.init.ones_(self.lora_c)

    @property
    def weight(self) -> Tensor:
        """The base map's weight, for model code that looks at its dtype or device."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def coefficients(self) -> Tensor:
        """Return c with the components that the mask excludes at exactly zero, (r')."""
        return torch.where(self.mask, self.lora_c, torch.zeros_like(self.lora_c))  # 0 * inf is NaN

    def forward(self, x: Tensor) -> Tensor:
        if self.r == 0:
            return cast(Tensor, self.base(x))  # no kernels for what has no elements
        if fast_path.fits(self, x):
            return fast_path.forward(self, x, self.mask if self.has_pruned() else None)
        return self.plain_forward(x)

    def plain_forward(self, x: Tensor) -> Tensor:
        """Return Eq. 6 in plain operations, differentiable by autograd alone: the reference."""
        y = self.base(x)
        h = F.linear(self.dropout(x.to(self.lora_A.dtype)), self.lora_A)
        update = F.linear(h * (self.scaling * self.coefficients()), self.lora_B)
        return (y + update).to(y.dtype)  # the sum is rounded once

    def has_pruned(self) -> bool:
        """Return whether the mask excludes a component; it is read only when it has changed."""
        mask = self.mask
        if mask.is_inference() or mask.is_meta:  # these have no version, or no content
            return True
        if mask is not self._mask_read or mask._version != self._mask_version:  # it counts changes
            self._mask_read, self._mask_version = mask, mask._version
            self._mask_has_pruned = not bool(mask.all())  # this waits for the device
        return self._mask_has_pruned

    def delta_weight(self) -> Tensor:
        """Return the update s sum_i c_i B[:, i] A[i, :] as one matrix, (d_out, d_in).

        It is for merging and for tests: a forward pass never forms it.
        """
        return (self.lora_B * (self.scaling * self.coefficients())) @ self.lora_A

    def active(self) -> Tensor:
        """Return which components are not zero, (r') bool. Their number is the layer's rank."""
        return self.mask & (self.lora_c != 0)

    def _apply(self, fn: Move, recurse: bool = True) -> DoRALinear:
        if recurse:
            self.base._apply(fn)  # the frozen base may become narrow
        super()._apply(never_narrow(fn), recurse=False)
        return self

    def extra_repr(self) -> str:
        sizes = f"d_in={self.in_features}, d_out={self.out_features}, r={self.r}"
        return f"{sizes}, scaling={self.scaling:g}"
