"""The adapter layer of dynamic rank distribution (Mao et al., ACL 2024). Start reading here.

It is not the layer of weight-decomposed DoRA (PEFT's `use_dora`). Legend: r' the number of
components that a layer starts with, d_in and d_out the sizes of the linear map that it adapts,
s = alpha / r' the scale.

    y = W0 x + s B (c * (A dropout(x)))        A (r', d_in), B (d_out, r'), c (r')          (Eq. 6)

Component i is the rank-one matrix c_i B[:, i] A[i, :]. Setting c_i to 0 prunes it. Until the ranks
are frozen, c_i may grow again. At the freeze, `mask[i]` of a pruned component becomes False: from
then on the component is exactly zero in every forward pass and receives no gradient.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynarank.adapters import check_settings, fast_path
from dynarank.adapters.linears import is_linear, linear_shape, stores_transposed
from dynarank.adapters.narrowing import Move, never_narrow
from dynarank.adapters.progress import AllocationProgress

__all__ = ["DoRALinear", "is_linear", "linear_shape", "stores_transposed"]


class DoRALinear(nn.Module):
    """A frozen linear map plus r' prunable rank-one components (Eq. 6 of Mao et al., ACL 2024).

    Shapes: x (..., d_in) -> y (..., d_out), in the base map's dtype. A new layer computes the same
    as its base map, because every component starts at zero.

    The parameters `lora_A` (r', d_in), `lora_B` (d_out, r') and `lora_c` (r') are float32 under any
    precision of the base map, and stay so under `.to`, `.half` and `.bfloat16`: in bfloat16, c
    would not move at usual learning rates. The base map's parameters are frozen. The buffer `mask`
    (r'), bool, is False for the components that are pruned for good.

    Args:
        base: the linear map W0: an `nn.Linear`, transformers' `Conv1D`, or a quantized one.
        r: the number r' of components that the layer starts with, at least 1.
        alpha: the scale's numerator: s = alpha / r'. s stays as it is when components go.
        dropout: the probability that an element of the adapter's input is dropped, in [0, 1).
        start: `paper` (A and B Kaiming-uniform as in the authors' code, c = 0), `lora` (A as in
            LoRA, B = 0, c = 1; B learns from the first step), `orthogonal` (c = 0, the vectors of A
            and B random, of length one and at right angles), or `orthogonal_A` (A's vectors alone
            so, B = 0, c = 1 and not trained: a component's size is in B).

    Raises:
        TypeError: `base` is not a linear map.
        ValueError: `r` < 1, `alpha` <= 0, `dropout` outside [0, 1), or an unknown `start`.

    Examples:
        >>> import torch
        >>> from dynarank import DoRALinear
        >>> layer = DoRALinear(torch.nn.Linear(8, 4), r=3, alpha=6)
        >>> layer(torch.zeros(2, 8)).shape
        torch.Size([2, 4])
        >>> layer.scaling
        2.0
    """

    mask: Tensor
    trains_c: bool = True
    """Whether c is to be trained; where it is not, it is one or, once pruned, zero."""

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
        self.r = r = int(r)  # a whole number may come as 2.0, which torch takes for no size
        self.alpha = alpha
        # Divided here and not in `forward`: cutting changes `r`, and must not change the outputs.
        self.scaling = alpha / r
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
        # A buffer: it goes with checkpoints, and no optimizer can change it.
        self.register_buffer("mask", torch.ones(r, device=device, dtype=torch.bool))
        self._forget_mask()
        self._initialize(start)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a layer that is copied, or that comes from a file."""
        super().__setstate__(state)
        self._forget_mask()  # a copied tensor counts its changes anew

    def _forget_mask(self) -> None:
        """Have the mask read again before it is used."""
        self._mask_read: Tensor | None = None
        self._mask_version = -1  # below any tensor's
        self._mask_has_pruned = False

    def _initialize(self, start: str) -> None:
        if start == "paper":
            # c is zero already, so that the update is zero although A and B are random.
            nn.init.kaiming_uniform_(self.lora_A)
            nn.init.kaiming_uniform_(self.lora_B)
        elif start == "orthogonal":
            # Of a wide matrix it makes the rows orthonormal, of a tall one the columns.
            nn.init.orthogonal_(self.lora_A)
            nn.init.orthogonal_(self.lora_B)
        else:
            if start == "orthogonal_A":
                nn.init.orthogonal_(self.lora_A)
                self.trains_c = False
                self.lora_c.requires_grad_(False)
            else:
                nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # LoRA's own value
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
        if not fast_path.fits(self, x):
            return self.plain_forward(x)
        # A mask that excludes nothing would only cost kernels.
        mask = self.mask if self.has_pruned() else None
        return fast_path.forward(self, x, mask)

    def plain_forward(self, x: Tensor) -> Tensor:
        """Return Eq. 6 in plain operations, differentiable by autograd alone: the reference."""
        y = self.base(x)  # (..., d_out)
        dropped = self.dropout(x.to(self.lora_A.dtype))
        h = F.linear(dropped, self.lora_A)  # (..., r')
        scaled_c = self.scaling * self.coefficients()  # (r')
        update = F.linear(h * scaled_c, self.lora_B)  # (..., d_out)
        return (y + update).to(y.dtype)  # the sum is rounded once

    def has_pruned(self) -> bool:
        """Return whether the mask excludes a component; it is read only when it has changed."""
        mask = self.mask
        if mask.is_inference() or mask.is_meta:  # these have no version, or no content
            return True
        # torch counts the changes in place of a tensor as its `_version`.
        is_known = mask is self._mask_read and mask._version == self._mask_version
        if not is_known:
            self._mask_read = mask
            self._mask_version = mask._version
            # This waits for the device, which a forward pass should not do each time.
            self._mask_has_pruned = not bool(mask.all())
        return self._mask_has_pruned

    def delta_weight(self) -> Tensor:
        """Return the update s sum_i c_i B[:, i] A[i, :] as one matrix, (d_out, d_in).

        It is for merging and for tests: a forward pass never forms it.
        """
        scaled_c = self.scaling * self.coefficients()
        return (self.lora_B * scaled_c) @ self.lora_A

    def active(self) -> Tensor:
        """Return which components are not zero, (r') bool. Their number is the layer's rank."""
        # Before the freeze, a pruned component may still be in the mask, with c at zero.
        return self.mask & (self.lora_c != 0)

    # `.to`, `.half`, `.cuda` and the like all pass through this hook of nn.Module.
    def _apply(self, fn: Move, recurse: bool = True) -> DoRALinear:
        if recurse:
            self.base._apply(fn)  # the frozen base may become narrow
        # A, B and c alone: the base was moved above.
        super()._apply(never_narrow(fn), recurse=False)
        return self

    def extra_repr(self) -> str:
        sizes = f"d_in={self.in_features}, d_out={self.out_features}, r={self.r}"
        return f"{sizes}, scaling={self.scaling:g}"
