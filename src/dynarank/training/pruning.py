"""After the freeze, what was pruned is zero for good: the weights and their moments.

Legend: A (r', d_in), B (d_out, r'), c (r') of an adapter, `mask` (r') its kept components.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import torch
from torch import Tensor, nn

from dynarank.adapters.inject import adapter_layers
from dynarank.methods.base import Carry

COMPONENT_AXIS = {"lora_A": 0, "lora_B": 1, "lora_c": 0}
"""Which axis of a factor counts components."""


@torch.no_grad()
def zero_pruned(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Set the pruned components' parts of A, B, c and of their moments to zero.

    Call it once, when the masks are final. The pruned parts have no gradient from then on, so that
    they stay zero under Adam and under weight decay.
    """
    for layer in adapter_layers(model).values():
        pruned = (~layer.mask).nonzero().flatten()
        for name, axis in COMPONENT_AXIS.items():
            factor = layer.get_parameter(name)
            for tensor in [factor, *_moments(factor, optimizers)]:
                tensor.index_fill_(axis, pruned, 0)


def _moments(factor: nn.Parameter, optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    """Return what the optimizers keep of a factor in the factor's own shape."""
    moments = []
    for optimizer in optimizers:
        for value in optimizer.state.get(factor, {}).values():
            if isinstance(value, Tensor) and value.shape == factor.shape:
                moments.append(value)
    return moments


@torch.no_grad()
def carry_over(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: MutableMapping[str, Tensor],
    maps: Mapping[Tensor, Carry],
) -> list[Tensor]:
    """Let Adam's moments and an average follow parameters that were turned, in place.

    Args:
        model: whose parameters the average has by name.
        optimizers: those of the run.
        average: of the parameters, by name; empty where there is none.
        maps: how to follow, by parameter.

    Returns:
        all that was changed, and the turned parameters.
    """
    changed: list[Tensor] = []
    for name, parameter in model.named_parameters():
        carry = maps.get(parameter)
        if carry is None:
            continue
        changed.append(parameter.data)
        if name in average:
            average[name].copy_(carry.value(average[name]))
            changed.append(average[name])
        for optimizer in optimizers:
            state = optimizer.state.get(parameter, {})
            for key, follow in (("exp_avg", carry.first), ("exp_avg_sq", carry.second)):
                if key in state:
                    state[key].copy_(follow(state[key]))
                    changed.append(state[key])
    return changed
