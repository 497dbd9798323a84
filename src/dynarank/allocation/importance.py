"""Importance of rank-one components (Eq. 7) and its smoothing (Eq. 8), from the factors alone.

`importance` is the formula. `layer_importance` computes it for all layers of a model with few
kernels, and is what the allocator calls.

Legend: r components of a layer, A (r, d_in) with rows a_i, B (d_out, r) with columns b_i, c (r).
Leading dimensions batch layers of one shape.
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

    No (d_out, d_in) matrix is formed: a rank-one matrix's norm is |c_i| ||a_i|| ||b_i||, and the
    sum's squared norm is c^T (A A^T * B^T B) c, where * is elementwise. So the cost is
    O(r^2 (d_in + d_out)) a layer.

    On CPUs, the Gram matrices A A^T and B^T B are in float32, and layers whose components nearly
    cancel are computed again in float64. On accelerators, where asking for such layers would wait
    for the device, they are in float64 throughout, if the device has it.

    Args:
        lora_A: A, (..., r, d_in).
        lora_B: B, (..., d_out, r).
        c: the coefficients, (..., r). All zero gives scores of zero.
        eps: keeps the divisor above zero. The layer's scale s, which is left out here, divides out
            but for it.

    Returns:
        the scores s. Factors that are not finite give scores that are not finite: the caller
        decides what to do.

    Examples:
        >>> import torch
        >>> from dynarank import importance
        >>> A, B, c = torch.eye(2, 8), torch.eye(8, 2), torch.tensor([3.0, 4.0])
        >>> importance(A, B, c)  # of components at right angles, 3/5 and 4/5
        tensor([0.6000, 0.8000])
    """
    gram_a, gram_b = _grams(lora_A, lora_B)
    components, squared = _squared_norms(gram_a * gram_b, c)
    if _may_cancel(c.device, lora_A, lora_B):
        doubtful = squared < _CANCELLED * components.sum(-1)  # (...)
        if bool(doubtful.any()):
            wide_a, wide_b = _grams(lora_A[doubtful].double(), lora_B[doubtful].double())
            wide_components, wide_squared = _squared_norms(wide_a * wide_b, c[doubtful])
            # `components` is a view of the products, whose sum is taken already.
            components[doubtful] = wide_components
            squared[doubtful] = wide_squared
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
    widest = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
    # Where cancelling layers are looked for, float32 is enough for all the others.
    dtype = torch.float32 if _may_cancel(device, lora_A, lora_B) else widest
    A, B = lora_A.to(dtype), lora_B.to(dtype)
    # What follows is (r, r) alone, where float64 costs next to nothing.
    return (A @ A.mT).to(widest), (B.mT @ B).to(widest)


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

    Args:
        layers: in model order.

    Raises:
        ValueError: there are no layers.
    """
    members = as_list(layers)
    scores: dict[int, Tensor] = {}
    for group in group_indices((layer.r, layer.mask.device) for layer in members):
        scores.update(_group_importance(members, group))
    return [scores[index] for index in range(len(members))]


def _group_importance(members: list[Components], group: list[int]) -> dict[int, Tensor]:
    """Return the scores of some layers of one r' on one device, by the layer's position.

    Args:
        members: all layers of the model.
        group: the positions of these layers.
    """
    order: list[int] = []  # the positions, in the order in which the Gram matrices are formed
    grams_a: list[Tensor] = []
    grams_b: list[Tensor] = []
    shapes = [(members[position].in_features, members[position].out_features) for position in group]
    for same_shape in group_indices(shapes):
        example = members[group[same_shape[0]]]
        elements = example.lora_A.numel() + example.lora_B.numel()
        for indices in chunks(same_shape, elements):
            positions = [group[index] for index in indices]
            gram_a, gram_b = _grams(
                stack([members[position].lora_A for position in positions]),
                stack([members[position].lora_B for position in positions]),
            )
            order += positions
            grams_a.append(gram_a)
            grams_b.append(gram_b)
    gram = torch.cat(grams_a) * torch.cat(grams_b)  # (layers, r', r')
    c = _coefficients([members[position] for position in order])
    components, squared = _squared_norms(gram, c)
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
    """Return the plain norms ||s c_i b_i a_i^T||_F, one (r') float32 tensor a layer, in order.

    Where parameters are counted, the allocator divides the norm by the component's price. What the
    loss loses is quadratic in the norm, so that the square would be the right dividend. Recorded
    runs of `score=absolute` have the norm, which therefore stays.
    """
    norms = []
    for layer in as_list(layers):
        scaled_c = layer.scaling * coefficients(layer).abs()
        norms_of_a = layer.lora_A.norm(dim=1)
        norms_of_b = layer.lora_B.norm(dim=0)
        norms.append((scaled_c * norms_of_a * norms_of_b).float())
    return norms


def smooth(previous: Tensor, scores: Tensor, beta: float) -> Tensor:
    """Return the moving average e(t) = beta e(t-1) + (1 - beta) s (Eq. 8).

    Args:
        previous: e(t-1), of any shape. The first one is zero, which makes all averages smaller by
            one common factor, and so changes no order.
        scores: s of this step, in the same shape.
        beta: what stays of the old average, in [0, 1).

    Examples:
        >>> import torch
        >>> from dynarank import smooth
        >>> smooth(torch.zeros(2), torch.tensor([1.0, 2.0]), beta=0.75)
        tensor([0.2500, 0.5000])
    """
    # One kernel, where the formula as it is written takes three.
    return torch.lerp(previous, scores, 1 - beta)
