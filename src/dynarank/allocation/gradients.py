"""The gradients of parameters, made where there are none yet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the parameters' gradients; those that are not there yet are made, of zeros."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    return gradients
