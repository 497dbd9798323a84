"""Optimizer and average follow parameters that a method has turned."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import torch
from torch import Tensor, nn

from dynarank.methods.protocols import Carry


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
        # By identity: a tensor's hash is that of the object, not of its values.
        carry = maps.get(parameter)
        if carry is None:
            continue
        # The method has turned the parameter itself. Its average and its moments follow here.
        changed.append(parameter.data)
        if name in average:
            average[name].copy_(carry.value(average[name]))
            changed.append(average[name])
        for optimizer in optimizers:
            # AdamW makes a parameter's moments at its first step, so there may be none.
            state = optimizer.state.get(parameter, {})
            for key, follow in (("exp_avg", carry.first), ("exp_avg_sq", carry.second)):
                if key in state:
                    state[key].copy_(follow(state[key]))
                    changed.append(state[key])
    return changed
