"""Train a finalized model on with the optimizer that has trained it so far.

`finalize` makes new factors. An optimizer that still holds the old ones would train nothing, in
silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from dynarank.allocation.attaching import parameter_ids
from dynarank.integrations.distributed import world_size
from dynarank.integrations.finalizing import finalize
from dynarank.integrations.gate import GatedLayer
from dynarank.integrations.lora_layers import lora_layers


def finalize_trained(
    model: nn.Module, layers: Mapping[str, GatedLayer], optimizer: torch.optim.Optimizer
) -> dict[str, int]:
    """Finalize the adapter of these layers; let the optimizer train the new factors from now on.

    The new factors stand in the parameter groups of the old ones, and start without the optimizer's
    state: a moment of A says nothing of A with c folded in.

    Args:
        model: as in `finalize`.
        layers: the gated layers of one adapter, by module name.
        optimizer: the one that has trained them; changed in place.

    Returns:
        the ranks by module name.

    Raises:
        ValueError: as `finalize`.
    """
    adapter = next(iter(layers.values())).adapter
    # Views of a layer are of no use once its gate is gone.
    old = {name: (layer.lora_A, layer.lora_B, layer.lora_c) for name, layer in layers.items()}
    ranks = finalize(model, adapter)
    new_of_old: dict[Tensor, nn.Parameter | None] = {}  # None: it is gone
    for name, (old_A, old_B, old_c) in old.items():
        layer = layers[name].layer
        new_of_old[old_c] = None  # it is folded into A
        if ranks[name]:
            new_of_old[old_A] = layer.lora_A[adapter].weight
            new_of_old[old_B] = layer.lora_B[adapter].weight
        else:
            new_of_old[old_A] = None
            new_of_old[old_B] = None
    for group in optimizer.param_groups:
        parameters = [new_of_old.get(old, old) for old in group["params"]]
        group["params"] = [parameter for parameter in parameters if parameter is not None]
    for parameter in new_of_old:
        optimizer.state.pop(parameter, None)
    return ranks


def check_retraining(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise `ValueError` where a finalized model's factors would not be trained, or not alike."""
    if world_size() > 1:
        # DDP exchanges the gradients of the parameters that the model had when it was wrapped.
        raise ValueError(
            "the model's ranks are final, and its factors are not those that this Trainer has "
            "distributed among the processes. Make a new Trainer to train on"
        )
    known = parameter_ids(optimizer)
    for name, layer in lora_layers(model).items():
        for factor in _trained_factors(layer):
            if id(factor) not in known:
                raise ValueError(
                    f"{name}: the optimizer holds the factors from before `finalize`, and would "
                    "not train those of now. Set trainer.optimizer = None, so that train() makes "
                    "a new one"
                )


def _trained_factors(layer: Any) -> list[nn.Parameter]:
    parameters = chain(layer.lora_A.parameters(), layer.lora_B.parameters())
    return [parameter for parameter in parameters if parameter.requires_grad]
