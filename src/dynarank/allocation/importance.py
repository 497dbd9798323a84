"""Importance of rank-one components (Eq. 7) and its smoothing (Eq. 8), from the factors alone.

Legend: r components of a layer, A (r, d_in), B (d_out, r), c (r). Leading dimensions batch layers
of one shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynarank.adapters.layer import DoRALinear
from dynarank.allocation.components import Components, Layers, as_list, coefficients
from dynarank.allocation.grouping import chunks, group_indices, stack

EPS = 1e-8
_CANCELLED = 0.05
"""Where components cancel to less than this share of their squared norms, Gram matrices in float32
leave too few digits of the sum's norm. Above it, scores are right to about 1e-6."""


def importance(lora_A: Tensor, lora_B: Tensor, c: Tensor, eps: float = EPS) -> Tensor:
    """Return each component's share of its layer's update (Eq. 7), (..., r), float32.

        s_i = ||c_i b_i a_i^T||_F / (||sum_j c_j b_j a_j^T||_F + eps)

    A rank-one matrix's norm is |c_i| ||a_i|| ||b_i||, and the sum's squared norm is
    c^T (A A^T * B^T B) c. So no (d_out, d_in) matrix is formed, and the cost is
    O(r^2 (d_in + d_out)) a layer. The Gram matrices A A^T and B^T B are in float32 on CPUs; layers
    whose components nearly cancel are computed again in float64. On accelerators, where asking for
    such layers would wait for the device, they are in float64 throughout, if the device has it. The
    layer's scale s divides out, but for eps. All c = 0 gives zeros. Factors that are not finite
    give scores that are not finite: the caller decides what to do.
    """
    gram_a, gram_b = _grams(lora_A, lora_B)
    components, squared = _squared_norms(gram_a * gram_b, c)
    if _may_cancel(c.device, lora_A, lora_B):
        doubtful = squared < _CANCELLED * components.sum(-1)  # (...)
        if bool(doubtful.any()):
            again = _grams(lora_A[doubtful].double(), lora_B[doubtful].double())
            norms = _squared_norms(again[0] * again[1], c[doubtful])
            # `components` is a view of the products, whose sum is taken already.
            components[doubtful], squared[doubtful] = norms
    return _shares(components, squared, eps)


def _shares(components: Tensor, squared: Tensor, eps: float) -> Tensor:
    """Return Eq. 7 from the squared norms (..., r) of the components, and (...) of their sum."""
    # Rounding may leave the squared norm of components that cancel just below zero.
    layer = squared.clamp_min(0).sqrt().unsqueeze(-1)  # (..., 1)
    return (components.sqrt() / (layer + eps)).to(torch.float32)


def _may_cancel(device: torch.device, lora_A: Tensor, lora_B: Tensor) -> bool:
    """Return whether layers whose components nearly cancel are looked for: on CPUs alone."""
    return device.type == "cpu" and torch.float64 not in (lora_A.dtype, lora_B.dtype)


def _grams(lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return A A^T and B^T B, (..., r, r) each, in float64 where the device has it."""
    device = lora_A.device
    # mps has no float64.
    narrow = device.type == "mps" or _may_cancel(device, lora_A, lora_B)
    dtype = torch.float32 if narrow else torch.float64
    A, B = lora_A.to(dtype), lora_B.to(dtype)
    wide = torch.float32 if device.type == "mps" else torch.float64
    # What follows is (r, r) alone, where float64 costs next to nothing.
    return (A @ A.mT).to(wide), (B.mT @ B).to(wide)


def _squared_norms(gram: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return the components' squared norms (..., r), and that of their sum (...).

    `gram` is A A^T * B^T B, (..., r, r).
    """
    products = gram * c.unsqueeze(-1) * c.unsqueeze(-2)  # entry ij: of components i and j
    return products.diagonal(dim1=-2, dim2=-1), products.sum((-2, -1))


@torch.no_grad()
def layer_importance(layers: Layers) -> list[Tensor]:
    """Return the scores of every layer's components, one (r') float32 tensor a layer, in order.

    The Gram matrices of layers of one shape are formed together, as many as may be stacked at once;
    what follows is done for all layers of one r' together. So small layers take few kernels, and
    large ones little memory.
    """
    members = as_list(layers)
    scores: dict[int, Tensor] = {}
    for group in group_indices((layer.r, layer.mask.device) for layer in members):
        scores.update(_group_importance(members, group))
    return [scores[index] for index in range(len(members))]


def _group_importance(members: list[Components], group: list[int]) -> dict[int, Tensor]:
    """Return the scores by position of layers of one r' on one device."""
    order: list[int] = []
    grams_a: list[Tensor] = []
    grams_b: list[Tensor] = []
    shapes = [(members[index].in_features, members[index].out_features) for index in group]
    for same in group_indices(shapes):
        example = members[group[same[0]]]
        for some in chunks(same, example.lora_A.numel() + example.lora_B.numel()):
            positions = [group[index] for index in some]
            gram_a, gram_b = _grams(
                stack([members[position].lora_A for position in positions]),
                stack([members[position].lora_B for position in positions]),
            )
            order += positions
            grams_a.append(gram_a)
            grams_b.append(gram_b)
    c = _coefficients([members[position] for position in order])
    components, squared = _squared_norms(torch.cat(grams_a) * torch.cat(grams_b), c)
    first = members[order[0]]
    if _may_cancel(c.device, first.lora_A, first.lora_B):
        doubtful = squared < _CANCELLED * components.sum(-1)  # (layers)
        # These layers may have several shapes, so that each is taken by itself.
        for row in doubtful.nonzero().flatten().tolist():
            layer = members[order[row]]
            gram_a, gram_b = _grams(layer.lora_A.double(), layer.lora_B.double())
            components[row], squared[row] = _squared_norms(gram_a * gram_b, c[row])
    return dict(zip(order, _shares(components, squared, EPS).unbind(), strict=True))


def _coefficients(layers: list[Components]) -> Tensor:
    """Return c of layers of one r', (layers, r'), zero where a mask excludes a component.

    Before the first mask does, nothing is masked.
    """
    c = stack([layer.lora_c for layer in layers])
    # `has_pruned` is not among what the protocol asks of other layers.
    if all(isinstance(layer, DoRALinear) and not layer.has_pruned() for layer in layers):
        return c
    return c * stack([layer.mask for layer in layers])


@torch.no_grad()
def layer_norms(layers: Layers) -> list[Tensor]:
    """Return the plain norms ||s c_i b_i a_i^T||_F, one (r') float32 tensor a layer, in order."""
    norms = []
    for layer in as_list(layers):
        scaled_c = layer.scaling * coefficients(layer).abs()
        norms.append((scaled_c * layer.lora_A.norm(dim=1) * layer.lora_B.norm(dim=0)).float())
    return norms


def smooth(previous: Tensor, scores: Tensor, beta: float) -> Tensor:
    """Return the moving average e(t) = beta e(t-1) + (1 - beta) s (Eq. 8); any shape."""
    return torch.lerp(previous, scores, 1 - beta)
