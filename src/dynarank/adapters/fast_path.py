"""The adapted layer's training pass with a backward pass of our own.

Legend: N input vectors, x (N, d_in), W0 (d_out, d_in), A (r, d_in), B (d_out, r), c (r) with the
frozen-out components at zero, m (N, d_in) the dropout mask, f = s / (1 - p) the scale, where p is
the dropout's probability, * elementwise.

    h = (m * x) A^T                  (N, r)          y = x W0^T + f h diag(c) B^T       (N, d_out)
    t = f dy B diag(c)               (N, r)          G = f dy^T h                       (d_out, r)
    dB = G diag(c)                                   dc_i = sum_j G_ji B_ji
    dA = t^T (m * x)                                 dx = dy W0 + m * (t A)

Autograd would keep the dropped input and a float mask, and would pass over the activations twice
more. This keeps x (which neighbouring layers share), a mask of one byte an element, h, and
B diag(c). The thin matrices are kept as h^T and t^T, since (r, N) products run about twice as fast
on CPUs.

`DoRALinear.plain_forward` is the reference. It is taken wherever `fits` does not know that the fast
form gives the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynarank.adapters.linears import is_conv1d, stores_transposed
from dynarank.adapters.masked_products import (
    add_input_gradient,
    cast,
    factor_gradient,
    thin_product,
)

if TYPE_CHECKING:
    from dynarank.adapters.layer import DoRALinear

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_COARSEST = 1 / 32
"""Dropout on CPUs compares one random byte with a threshold where p and 1 - p are at least this."""
_NO_GRADIENT = (None,) * 6
"""Of the arguments of `AdaptedLinear` behind A, B and c."""
_INT64_MIN = -(2**63)


def fits(layer: DoRALinear, x: Tensor) -> bool:
    """Return whether the fast form may take the place of the layer's plain form for this input."""
    # Without gradients there is no backward pass, and nothing to gain.
    # An exact type: subclasses of Tensor give operations a meaning of their own.
    if not torch.is_grad_enabled() or type(x) is not Tensor or x.ndim < 2 or x.numel() == 0:
        return False
    # A trace would hold for good which branches were taken, that of the mask among them.
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    # A function with its own backward pass has no rule for vmap, jvp and the like.
    # torch has no public question for it.
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return False
    if type(layer.dropout) is not nn.Dropout or _has_hooks(layer.dropout):
        return False
    return _is_plain_base(layer.base, x) and _are_plain_factors(layer, x)


def _is_plain_base(base: nn.Module, x: Tensor) -> bool:
    """Return whether the base map is what its class says, frozen, and nobody listens to it."""
    # By the exact type: a subclass may compute something else.
    if type(base) is not nn.Linear and not is_conv1d(base):
        return False
    if _has_hooks(base) or "forward" in vars(base):  # accelerate replaces `forward`
        return False
    weight, bias = base.weight, base.bias
    for tensor in (weight,) if bias is None else (weight, bias):
        # The backward pass returns no gradient for the base's weight and bias.
        if type(tensor) not in (nn.Parameter, Tensor) or tensor.requires_grad:
            return False
        if tensor.dtype not in _FLOATS or tensor.device != x.device or tensor.is_meta:
            return False
    assert isinstance(weight, Tensor)
    if torch.is_autocast_enabled(x.device.type):
        # Autocast leaves float64 alone, so that the two forms would differ in type.
        return torch.float64 not in (weight.dtype, x.dtype)
    return weight.dtype == x.dtype


def _are_plain_factors(layer: DoRALinear, x: Tensor) -> bool:
    """Return whether A, B and c are local tensors of one dtype on the input's device."""
    dtype = layer.lora_A.dtype
    for factor in (layer.lora_A, layer.lora_B, layer.lora_c):
        if type(factor) not in (nn.Parameter, Tensor):  # sharded, for example
            return False
        if factor.dtype != dtype or factor.device != x.device:
            return False
    if torch.is_autocast_enabled(x.device.type):
        return dtype != torch.float64  # which autocast leaves alone
    return dtype.itemsize >= x.dtype.itemsize  # a sum is never narrower than its parts


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def forward(layer: DoRALinear, x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the layer's output for an input that `fits`; shapes as in `DoRALinear`.

    Args:
        mask: (r) bool, the components that are not frozen out; None where all of them are there.
    """
    base, lora_A = layer.base, layer.lora_A
    weight, bias = base.weight, base.bias
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    adapter_dtype = lora_A.dtype
    if torch.is_autocast_enabled(x.device.type):
        adapter_dtype = torch.get_autocast_dtype(x.device.type)
        # By hand: the backward pass runs outside autocast, on the tensors that are kept here.
        x = x.to(adapter_dtype)
        weight = weight.to(adapter_dtype)
        bias = None if bias is None else bias.to(adapter_dtype)
    if stores_transposed(base):
        weight = weight.T

    dropped, keep, keep_share = None, None, 1.0
    dropout, h_scale = layer.dropout, layer.scaling
    if dropout.training and dropout.p > 0:
        if draws_cheap_bits(x):
            keep, keep_share = draw_keep_mask(x, dropout.p)
            h_scale /= keep_share
        else:
            dropped, keep = drop_in_one_kernel(x, dropout.p)
            keep_share = 1 - dropout.p
    y = AdaptedLinear.apply(
        x,
        weight,
        bias,
        lora_A,
        layer.lora_B,
        layer.lora_c,
        mask,
        dropped,
        keep,
        layer.scaling / keep_share,
        h_scale,
        adapter_dtype,
    )
    assert isinstance(y, Tensor)
    # The view is made out here: autograd lets nobody change a view in place that was made inside.
    return y.view(*x.shape[:-1], y.shape[-1])


def draws_cheap_bits(x: Tensor) -> bool:
    """Return whether the mask is drawn here: on CPUs, where torch's own takes longest."""
    return x.device.type == "cpu"


def draw_keep_mask(x: Tensor, p: float) -> tuple[Tensor, float]:
    """Draw which elements of x dropout keeps; return one byte an element, and the share kept.

    It is for CPUs. The mask, (N, d_in), is a function of torch's generator alone. Random bytes are
    compared with a threshold, which is p in steps of 1/256, rounded up or down at random: an
    element is dropped with probability p, and the share returned is the one that this threshold
    keeps. Where a step would be much of p, two bytes an element are drawn.
    """
    dtype = torch.int8 if _COARSEST <= p <= 1 - _COARSEST else torch.int16
    levels = 256**dtype.itemsize
    count = x.numel()
    # Drawn as words of 64 bits: torch draws element by element, however small an element is.
    # From the lowest number on: without it, torch never draws the sign's bit.
    # One word more, for the threshold.
    words = torch.empty(count * dtype.itemsize // 8 + 2, dtype=torch.int64).random_(
        _INT64_MIN, None
    )
    # Never all levels: the share that is kept is a divisor.
    dropped = min(int(p * levels + _uniform(words[-1])), levels - 1)
    width = x.shape[-1]
    # One view that leaves out the spare words.
    keep = words.view(dtype).as_strided((count // width, width), (width, 1))
    # In place, since only a result of the same type is compared by vector instructions.
    keep.ge_(dropped - levels // 2)
    return keep.to(torch.int8), 1 - dropped / levels


def _uniform(word: Tensor) -> float:
    """Return a number from 0 to 1 of 64 random bits; the middle, where a tensor has no content."""
    return int(word) / 2**64 + 0.5 if type(word) is Tensor else 0.5


@torch.no_grad()
def drop_in_one_kernel(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Return torch's own dropout of x, scaled by 1 / (1 - p), and one byte an element.

    Both are (N, d_in).
    """
    # It gives the mask, which `F.dropout` keeps to itself.
    dropped, keep = torch.native_dropout(x, p, True)
    width = x.shape[-1]
    return dropped.reshape(-1, width), keep.view(torch.int8).reshape(-1, width)


class AdaptedLinear(torch.autograd.Function):
    """Eq. 6 with dropout, forward and backward as in the file's legend."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        lora_c: Tensor,
        mask: Tensor | None,
        dropped: Tensor | None,
        keep: Tensor | None,
        scale: float,
        h_scale: float,
        dtype: torch.dtype,
    ) -> Tensor:
        """Return y (N, d_out) in the weight's dtype; the adapter's part is computed in `dtype`.

        x is (..., d_in), the dropped input and the mask are (N, d_in). Where the dropped input is
        given it is scaled already, and `h_scale` is s in place of f.
        """
        y = F.linear(_rows(x), weight, bias)
        if dropped is None:
            h_t = thin_product(cast(lora_A, dtype), _rows(x), keep)  # (r, N)
        else:
            h_t = thin_product(cast(lora_A, dtype), dropped, None)
        scaled_B = cast(lora_B * _masked(lora_c, mask), dtype)
        # In place where y has the type already: nobody else has it yet.
        total = cast(y, dtype).addmm_(h_t.T, scaled_B.T, alpha=h_scale)
        ctx.save_for_backward(x, weight, lora_A, lora_B, lora_c, mask, keep, h_t, scaled_B)
        ctx.scale, ctx.h_scale = scale, h_scale
        ctx.dtype = dtype
        return cast(total, y.dtype)  # the sum is rounded once

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, A, B and c; the rest has none."""
        x, weight, lora_A, lora_B, lora_c, mask, keep, h_t, scaled_B = ctx.saved_tensors
        needed = [ctx.needs_input_grad[index] for index in (0, 3, 4, 5)]
        if torch.is_grad_enabled():  # somebody will differentiate these gradients
            dx, dA, dB, dc = _differentiable_gradients(ctx, dy, needed)
            return dx, None, None, dA, dB, dc, *_NO_GRADIENT

        scale, dtype = ctx.scale, ctx.dtype
        c = _masked(lora_c, mask)
        dy_wide = cast(dy, dtype)
        # With beta = 0, the first argument gives addmm a shape alone.
        t_t = torch.addmm(h_t, scaled_B.T, dy_wide.T, beta=0, alpha=scale)  # (r, N)
        dx = dA = dB = dc = None
        if needed[0]:
            dx = cast(dy.mm(weight), dtype)
            add_input_gradient(dx, t_t, cast(lora_A, dtype), keep)
            dx = cast(dx, x.dtype).view(x.shape)
        if needed[1]:
            dA = cast(factor_gradient(t_t, _rows(x), keep), lora_A.dtype)
        if needed[2] or needed[3]:
            B_t = cast(lora_B, dtype).T
            G_t = torch.addmm(B_t, h_t, dy_wide, beta=0, alpha=ctx.h_scale)  # (r, d_out)
            G_t = cast(G_t, lora_B.dtype)
            # In B's own layout, since autograd would copy a gradient of another one.
            dB = torch.mul(G_t.T, c, out=torch.empty_like(lora_B))
            # One dot product a component, without a temporary of B's size.
            dc = torch.bmm(G_t.unsqueeze(1), lora_B.T.unsqueeze(2)).flatten()
            dc = cast(_masked(dc, mask), lora_c.dtype)
        return dx, None, None, dA, dB, dc, *_NO_GRADIENT


def _rows(x: Tensor) -> Tensor:
    """Return (..., d) as (N, d), where possible without a copy."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _masked(c: Tensor, mask: Tensor | None) -> Tensor:
    return c if mask is None else torch.where(mask, c, 0)


def _differentiable_gradients(ctx: Any, dy: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of x, A, B and c by autograd, so that they have gradients themselves."""
    x, weight, lora_A, lora_B, lora_c, mask, keep, _, _ = ctx.saved_tensors
    inputs = (x, lora_A, lora_B, lora_c)
    wide = ctx.dtype
    y = F.linear(x, weight)
    # By the mask that was drawn: a new draw would be another function.
    dropped = x.to(wide) if keep is None else x.to(wide) * keep.view(x.shape)
    h = F.linear(dropped, lora_A.to(wide))
    update = F.linear(h * (ctx.scale * _masked(lora_c, mask)), lora_B.to(wide))
    total = _rows((y + update).to(y.dtype))
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    gradients = iter(torch.autograd.grad(total, wanted, dy, create_graph=True))
    return [next(gradients) if need else None for need in needed]
