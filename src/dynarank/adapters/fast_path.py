"""The adapted layer's training pass (Eq. 6) with a backward pass of our own, for speed alone.

`DoRALinear.plain_forward` computes the same in three plain lines and is the reference: read it
first. It is taken wherever `fits` does not know that the fast path gives the same result.

Legend: N input vectors, x (N, d_in), W0 (d_out, d_in), A (r, d_in), B (d_out, r), c (r) with the
masked components at zero, m (N, d_in) the dropout mask of zeros and ones, f = s / (1 - p) the
scale, where p is the dropout's probability, * elementwise, ^T transposed.

    h = (m * x) A^T                  (N, r)          y = x W0^T + f h diag(c) B^T       (N, d_out)
    t = f dy B diag(c)               (N, r)          G = f dy^T h                       (d_out, r)
    dB = G diag(c)                                   dc_i = sum_j G_ji B_ji
    dA = t^T (m * x)                                 dx = dy W0 + m * (t A)

Autograd would keep the dropped input and a float mask, and would pass over the activations twice
more. This keeps x (which neighbouring layers share), a mask of one byte an element, h, and
B diag(c). The thin matrices are kept as h^T and t^T (`h_t`, `t_t` in the code), since (r, N)
products run about twice as fast on CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynarank.adapters.dropout_masks import (
    draw_keep_mask,
    draws_cheap_bits,
    drop_in_one_kernel,
)
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
_NO_GRADIENT = (None,) * 6
"""What `backward` returns for the six arguments of `AdaptedLinear.forward` that follow A, B, c."""


def fits(layer: DoRALinear, x: Tensor) -> bool:
    """Return whether the fast path gives what the layer's plain form gives for this input."""
    # Without gradients there is no backward pass, and nothing to gain.
    if not torch.is_grad_enabled() and not _may_come_again(layer):
        return False
    # A trace would hold for good which branches were taken, that of the mask among them.
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    # An exact type: subclasses of Tensor give operations a meaning of their own.
    if type(x) is not Tensor or x.ndim < 2 or x.numel() == 0:
        return False
    # A function with its own backward pass has no rule for vmap, jvp and the like.
    # torch has no public question for it.
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return False
    if type(layer.dropout) is not nn.Dropout or _has_hooks(layer.dropout):
        return False
    return _is_plain_base(layer.base, x) and _are_plain_factors(layer, x)


def _may_come_again(layer: DoRALinear) -> bool:
    """Return whether a pass without gradients may be the first of two with one dropout mask.

    Reentrant checkpointing runs each pass again with gradients, from the generator's old state.
    The plain form would draw another mask from it, and the gradient would be of another function.
    """
    dropout = layer.dropout
    draws = type(dropout) is nn.Dropout and dropout.training and dropout.p > 0
    return draws and not torch.is_inference_mode_enabled()


def _is_plain_base(base: nn.Module, x: Tensor) -> bool:
    """Return whether the base map is a plain frozen linear map without hooks."""
    # By the exact type: a subclass may compute something else.
    if type(base) is not nn.Linear and not is_conv1d(base):
        return False
    if _has_hooks(base) or "forward" in vars(base):  # accelerate replaces `forward`
        return False
    weight, bias = base.weight, base.bias
    tensors = (weight,) if bias is None else (weight, bias)
    for tensor in tensors:
        # The backward pass returns no gradient for the base's weight and bias.
        if type(tensor) not in (nn.Parameter, Tensor) or tensor.requires_grad:
            return False
        if tensor.dtype not in _FLOATS or tensor.device != x.device or tensor.is_meta:
            return False
    assert isinstance(weight, Tensor)
    if torch.is_autocast_enabled(x.device.type):
        # Autocast leaves float64 alone, so that the two forms would differ in dtype.
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
        mask: (r) bool, False for components that are pruned for good; None where there are none.
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

    dropped, keep, keep_share = _drop(layer.dropout, x)
    scale = layer.scaling / keep_share
    # What the kernel dropped it has divided by the share already, so that h needs s alone.
    h_scale = scale if dropped is None else layer.scaling
    # By position: `apply` takes no named arguments.
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
        scale,
        h_scale,
        adapter_dtype,
    )
    assert isinstance(y, Tensor)
    # The view is made out here: autograd lets nobody change a view in place that was made inside.
    return y.view(*x.shape[:-1], y.shape[-1])


def _drop(dropout: nn.Dropout, x: Tensor) -> tuple[Tensor | None, Tensor | None, float]:
    """Return x after dropout where it is formed, the mask, and the share of elements kept.

    The tensors are (N, d_in). Without dropout they are None, and the share is 1.
    """
    if not dropout.training or dropout.p == 0:
        return None, None, 1.0
    if draws_cheap_bits(x):
        return None, *draw_keep_mask(x, dropout.p)
    return *drop_in_one_kernel(x, dropout.p), 1 - dropout.p


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
        """Return y (N, d_out) in the weight's dtype.

        Args:
            ctx: where autograd keeps what `backward` needs.
            x: (..., d_in), of N vectors.
            weight: W0 (d_out, d_in), frozen.
            bias: (d_out), frozen.
            lora_A: (r, d_in).
            lora_B: (d_out, r).
            lora_c: (r).
            mask: (r) bool, False for components that are pruned for good.
            dropped: x after dropout, scaled, (N, d_in); None where it is not formed.
            keep: the dropout mask, (N, d_in), one byte an element; None without dropout.
            scale: f, or s without dropout.
            h_scale: what the adapter's output is multiplied by: f, or s where `dropped` is given.
            dtype: what the adapter's part is computed in.
        """
        y = F.linear(_rows(x), weight, bias)
        A = cast(lora_A, dtype)
        # What the kernel dropped has met the mask already.
        inputs, to_apply = (_rows(x), keep) if dropped is None else (dropped, None)
        h_t = thin_product(A, inputs, to_apply)  # (r, N)
        scaled_B = cast(lora_B * _masked(lora_c, mask), dtype)  # B diag(c)
        # In place where y has the dtype already: nobody else has it yet.
        total = cast(y, dtype).addmm_(h_t.T, scaled_B.T, alpha=h_scale)
        # A in both types, since another cast would take the host longer than the device.
        ctx.save_for_backward(x, weight, lora_A, lora_B, lora_c, mask, keep, h_t, scaled_B, A)
        ctx.scale, ctx.h_scale = scale, h_scale
        ctx.dtype = dtype
        return cast(total, y.dtype)  # the sum is rounded once

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for each argument of `forward`, in order; x, A, B and c alone have one.

        dy is (N, d_out). The letters are those of the file's legend.
        """
        x, weight, lora_A, lora_B, lora_c, mask, keep, h_t, scaled_B, A = ctx.saved_tensors
        needs_x, _, _, needs_A, needs_B, needs_c = ctx.needs_input_grad[:6]
        if torch.is_grad_enabled():  # somebody will differentiate these gradients
            needed = (needs_x, needs_A, needs_B, needs_c)
            dx, dA, dB, dc = _differentiable_gradients(ctx, dy, needed)
            return dx, None, None, dA, dB, dc, *_NO_GRADIENT

        scale, dtype = ctx.scale, ctx.dtype
        c = _masked(lora_c, mask)
        dy_wide = cast(dy, dtype)
        # With beta = 0, the first argument gives addmm a shape alone.
        t_t = torch.addmm(h_t, scaled_B.T, dy_wide.T, beta=0, alpha=scale)  # (r, N)
        dx = dA = dB = dc = None
        if needs_x:
            dx = cast(dy.mm(weight), dtype)
            add_input_gradient(dx, t_t, A, keep)
            dx = cast(dx, x.dtype).view(x.shape)
        if needs_A:
            dA = cast(factor_gradient(t_t, _rows(x), keep), lora_A.dtype)
        if needs_B or needs_c:
            G_t = torch.addmm(h_t[:, :1], h_t, dy_wide, beta=0, alpha=ctx.h_scale)  # (r, d_out)
            G_t = cast(G_t, lora_B.dtype)
            # In B's own layout, since autograd would copy a gradient of another one.
            dB = torch.mul(G_t.T, c, out=torch.empty_like(lora_B))
            if needs_c:
                # One dot product a component, without a temporary of B's size.
                dc = torch.bmm(G_t.unsqueeze(1), lora_B.T.unsqueeze(2)).flatten()
                # A masked component's dot product is not zero, but its gradient is.
                dc = cast(_masked(dc, mask), lora_c.dtype)
        return dx, None, None, dA, dB, dc, *_NO_GRADIENT


def _rows(x: Tensor) -> Tensor:
    """Return (..., d) as (N, d), where possible without a copy."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _masked(c: Tensor, mask: Tensor | None) -> Tensor:
    return c if mask is None else torch.where(mask, c, 0)


def _differentiable_gradients(ctx: Any, dy: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of x, A, B and c by autograd, so that they have gradients themselves."""
    x, weight, lora_A, lora_B, lora_c, mask, keep, *_ = ctx.saved_tensors
    wide = ctx.dtype
    y = F.linear(x, weight)
    dropped = x.to(wide)
    if keep is not None:
        # By the mask that was drawn: a new draw would be another function.
        dropped = dropped * keep.view(x.shape)
    h = F.linear(dropped, lora_A.to(wide))
    scaled_c = ctx.scale * _masked(lora_c, mask)
    update = F.linear(h * scaled_c, lora_B.to(wide))
    total = _rows((y + update).to(y.dtype))

    inputs = (x, lora_A, lora_B, lora_c)
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    # autograd returns gradients of the wanted ones alone: the others are put between them here.
    gradients = iter(torch.autograd.grad(total, wanted, dy, create_graph=True))
    return [next(gradients) if need else None for need in needed]
