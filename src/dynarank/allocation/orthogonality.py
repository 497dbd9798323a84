"""Orthogonal regularization (AdaLoRA, Zhang et al., ICLR 2023, Eq. 4): directions of length one.

It pulls a layer's vectors a_i, and its vectors b_i, to length one and to right angles. The size of
a component is then in c_i alone, and a high learning rate turns its directions without making it
larger. Where c is fixed, the size must be in b_i: there a_i alone is pulled at.

Legend: r' components of a layer, a_i a row of A and b_i a column of B, P (r', d) the factor whose
rows are a layer's a_i, or its b_i; F factors of the model, two a layer where c is trained, else
one; I the identity.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dynarank.allocation.components import Layers, as_list
from dynarank.allocation.gradients import gradients_of
from dynarank.allocation.grouping import chunks, group_indices


class _Factor(NamedTuple):
    parameter: Tensor
    mask: Tensor
    """Which components are kept, (r') bool."""
    is_turned: bool
    """Whether P is the parameter transposed."""

    @property
    def rows(self) -> Tensor:
        """P, (r', d)."""
        return self.parameter.mT if self.is_turned else self.parameter

    @property
    def key(self) -> Hashable:
        """What factors must share to be stacked."""
        return (self.parameter.shape, self.parameter.device, self.is_turned)


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
    all_layers = as_list(layers)
    trains_any_c = any(layer.lora_c.requires_grad for layer in all_layers)
    factors: list[_Factor] = []
    for layer in all_layers:
        factors.append(_Factor(layer.lora_A, layer.mask, is_turned=False))
        # A layer that was cut to rank 0 trains nothing. It counts in F as it did before the cut.
        if layer.lora_c.requires_grad if layer.r else trains_any_c:
            factors.append(_Factor(layer.lora_B, layer.mask, is_turned=True))
    device = factors[0].parameter.device
    norms = []
    # Autocast would round P P^T to a few digits, and its small difference from I be lost.
    with torch.autocast(device.type, enabled=False):
        for group in group_indices(factor.key for factor in factors):
            for indices in chunks(group, factors[group[0]].parameter.numel()):
                members = [factors[index] for index in indices]
                norm, gradient = _norms_and_gradients(members)
                norms.append(norm.to(device))
                gradient *= weight / len(factors)
                if grad_scale is not None:
                    gradient *= grad_scale.to(gradient.device)
                changes = list((gradient.mT if members[0].is_turned else gradient).unbind())
                parameters = [factor.parameter for factor in members]
                # One kernel for many gradients on GPUs. torch's own optimizers use this name.
                torch._foreach_add_(gradients_of(parameters), changes)
    return (torch.cat(norms).sum() / len(factors)).float()


def _norms_and_gradients(factors: Sequence[_Factor]) -> tuple[Tensor, Tensor]:
    """Return ||P P^T - I|| of factors of one shape, (L), and its gradients, (L, r', d)."""
    kept = torch.stack([factor.mask for factor in factors]).to(factors[0].parameter.dtype)
    P = torch.stack([factor.rows for factor in factors]) * kept.unsqueeze(-1)  # (L, r', d)
    excess = P @ P.mT - torch.diag_embed(kept)  # (L, r', r')
    norm = excess.square().sum(dim=(1, 2)).sqrt()
    # At an orthonormal factor the norm has no gradient; 0 is one of its subgradients.
    divisor = torch.where(norm > 0, norm, torch.ones_like(norm))
    return norm, 2 * (excess @ P) / divisor[:, None, None]
