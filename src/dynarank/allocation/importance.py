"""Importance of rank-one components (Eq. 7) and its smoothing (Eq. 8), from the factors alone.

Legend: r components of a layer, A (r, d_in), B (d_out, r), c (r). Leading dimensions batch layers
of one shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynarank.allocation.components import Layers, as_list, coefficients
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
    device = c.device.type
    doubles = torch.float64 in (lora_A.dtype, lora_B.dtype)
    narrow = device == "mps" or (device == "cpu" and not doubles)
    gram_dtype = torch.float32 if narrow else torch.float64
    components, squared = _squared_norms(lora_A.to(gram_dtype), lora_B.to(gram_dtype), c)
    if device == "cpu" and not doubles:
        doubtful = squared < _CANCELLED * components.sum(-1)  # (...)
        if bool(doubtful.any()):
            parts = (lora_A[doubtful].double(), lora_B[doubtful].double(), c[doubtful])
            components[doubtful], squared[doubtful] = _squared_norms(*parts)
    layer = squared.clamp_min(0).sqrt().unsqueeze(-1)  # (..., 1)
    return (components.sqrt() / (layer + eps)).to(torch.float32)


def _squared_norms(A: Tensor, B: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return the components' squared norms (..., r), and that of their sum (...), in float64."""
    wide = torch.float32 if c.device.type == "mps" else torch.float64
    gram = (A @ A.mT).to(wide) * (B.mT @ B).to(wide)  # (..., r, r)
    c = c.to(wide)
    components = c.square() * gram.diagonal(dim1=-2, dim2=-1)
    squared = (c.unsqueeze(-2) @ gram @ c.unsqueeze(-1)).squeeze((-2, -1))
    return components, squared


@torch.no_grad()
def layer_importance(layers: Layers) -> list[Tensor]:
    """Return the scores of every layer's components, one (r') float32 tensor a layer, in order.

    Layers of one shape on one device are scored together, as many as may be stacked at once: so
    small layers take few kernels, and large ones little memory.
    """
    members = as_list(layers)
    shapes = [
        (layer.r, layer.in_features, layer.out_features, layer.mask.device) for layer in members
    ]
    scores: dict[int, Tensor] = {}
    for group in group_indices(shapes):
        elements = members[group[0]].lora_A.numel() + members[group[0]].lora_B.numel()
        for indices in chunks(group, elements):
            part = [members[index] for index in indices]
            masks = stack([layer.mask for layer in part])
            part_scores = importance(
                stack([layer.lora_A for layer in part]),
                stack([layer.lora_B for layer in part]),
                stack([layer.lora_c for layer in part]).masked_fill(~masks, 0),
            )
            scores.update(zip(indices, part_scores.unbind(), strict=True))
    return [scores[index] for index in range(len(members))]


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
    return beta * previous + (1 - beta) * scores
