"""Importance of rank-one components (Eq. 7) and its smoothing (Eq. 8), from the factors alone.

Legend: r components of a layer, A (r, d_in), B (d_out, r), c (r). Leading dimensions batch layers
of one shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynarank.allocation.components import Layers, as_list, coefficients
from dynarank.allocation.grouping import group_indices

EPS = 1e-8


def importance(lora_A: Tensor, lora_B: Tensor, c: Tensor, eps: float = EPS) -> Tensor:
    """Return each component's share of its layer's update (Eq. 7), (..., r), float32.

        s_i = ||c_i b_i a_i^T||_F / (||sum_j c_j b_j a_j^T||_F + eps)

    A rank-one matrix's norm is |c_i| ||a_i|| ||b_i||, and the sum's squared norm is
    c^T (A A^T * B^T B) c. So no (d_out, d_in) matrix is formed, and the cost is
    O(r^2 (d_in + d_out)) a layer. The computation is in float64 where the device has it, because
    components that nearly cancel leave few digits of that quadratic form. The layer's scale s
    divides out, but for eps. All c = 0 gives zeros. Factors that are not finite give scores that
    are not finite: the caller decides what to do.
    """
    wide = torch.float32 if c.device.type == "mps" else torch.float64
    A, B, c = lora_A.to(wide), lora_B.to(wide), c.to(wide)
    component = c.abs() * A.norm(dim=-1) * B.norm(dim=-2)  # (..., r)
    gram = (A @ A.mT) * (B.mT @ B)  # (..., r, r)
    layer = (c.unsqueeze(-2) @ gram @ c.unsqueeze(-1)).squeeze(-1).clamp_min(0).sqrt()  # (..., 1)
    return (component / (layer + eps)).to(torch.float32)


@torch.no_grad()
def layer_importance(layers: Layers) -> list[Tensor]:
    """Return the scores of every layer's components, one (r') float32 tensor a layer, in order.

    Layers of one shape on one device are scored together: the number of kernels does not grow with
    the model's depth.
    """
    members = as_list(layers)
    shapes = [
        (layer.r, layer.in_features, layer.out_features, layer.mask.device) for layer in members
    ]
    scores: dict[int, Tensor] = {}
    for indices in group_indices(shapes):
        group = [members[index] for index in indices]
        group_scores = importance(
            torch.stack([layer.lora_A for layer in group]),
            torch.stack([layer.lora_B for layer in group]),
            torch.stack([coefficients(layer) for layer in group]),
        )
        scores.update(zip(indices, group_scores.unbind(), strict=True))
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
