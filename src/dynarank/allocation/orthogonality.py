"""Orthogonal regularization (AdaLoRA, Zhang et al., ICLR 2023, Eq. 4): directions of length one.

It pulls a layer's vectors a_i, and its vectors b_i, to length one and to right angles. The size of
a component is then in c_i alone, and a high learning rate turns its directions without making it
larger.

Legend: r' components of a layer, a_i a row of A and b_i a column of B, P (r', d) the factor whose
rows are a layer's a_i, or its b_i; F factors of the model, two a layer; I the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynarank.allocation.components import Layers, as_list
from dynarank.allocation.gradients import gradients_of
from dynarank.allocation.grouping import chunks, group_indices


@torch.no_grad()
def add_orthogonality_gradient(
    layers: Layers, weight: float, grad_scale: Tensor | None = None
) -> Tensor:
    """Add the gradient of weight R to A's and B's gradients; return R, a float32 scalar.

    R = (1/F) sum ||P P^T - I|| with Frobenius' norm, the mean over all factors, as in PEFT. Its
    gradient is 2 (P P^T - I) P / (F ||P P^T - I||). Components that the mask excludes take no part:
    the others need not stand at a right angle to what is gone. Call it once before an optimizer
    step.

    Args:
        layers: as `inject` returns them. A gradient that is None is made.
        weight: of R in the loss.
        grad_scale: the loss scaler's factor, where the gradients are still multiplied by it.

    Raises:
        ValueError: there are no layers.
    """
    members = as_list(layers)
    device = members[0].lora_A.device
    parameters: list[Tensor] = []
    rows: list[Tensor] = []  # P of each factor, a view of its parameter
    is_turned: list[bool] = []  # whether P is the parameter transposed
    masks: list[Tensor] = []
    for layer in members:
        parameters += [layer.lora_A, layer.lora_B]
        rows += [layer.lora_A, layer.lora_B.mT]
        is_turned += [False, True]
        masks += [layer.mask, layer.mask]
    norms = []
    keys = [(P.shape, P.device, turned) for P, turned in zip(rows, is_turned, strict=True)]
    for group in group_indices(keys):
        if rows[group[0]].numel() == 0:
            continue
        for indices in chunks(group, rows[group[0]].numel()):
            kept = torch.stack([masks[index] for index in indices]).unsqueeze(-1)  # (L, r', 1)
            stacked = torch.stack([rows[index] for index in indices]) * kept  # (L, r', d)
            excess = stacked @ stacked.mT - torch.diag_embed(kept.squeeze(-1).to(stacked.dtype))
            norm = torch.linalg.matrix_norm(excess)  # (L)
            norms.append(norm.to(device))
            # At an orthonormal factor the norm has no gradient; 0 is one of its subgradients.
            divisor = torch.where(norm > 0, norm, torch.ones_like(norm))[:, None, None]
            change = 2 * weight / len(rows) * (excess @ stacked) / divisor
            if grad_scale is not None:
                change *= grad_scale.to(change.device)
            changes = list(change.unbind())
            if is_turned[group[0]]:
                changes = [own.mT for own in changes]
            # One kernel for many gradients on GPUs. torch's own optimizers use this private name.
            torch._foreach_add_(gradients_of([parameters[index] for index in indices]), changes)
    if not norms:
        return torch.zeros((), device=device)
    return (torch.cat(norms).sum() / len(rows)).float()
