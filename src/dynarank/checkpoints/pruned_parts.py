"""After the freeze, checkpoints hold the kept components alone, for the pruned ones are zero.

Legend: A (r', d_in), B (d_out, r'), c (r') of an adapter, `mask` (r') its kept components.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dynarank.training.pruning import COMPONENT_AXIS

NAMES = "optimizer_names"
"""A checkpoint's entry that says that pruned components are left out.

It holds the names of the optimizer's parameters, by index.
"""

Change = Callable[[str, int, Tensor], Tensor]
"""Maps a layer's name, the axis of its components, and a factor or one of its moments."""


def leave_out_pruned(checkpoint: dict[str, Any], names: list[str]) -> None:
    """Leave the pruned components out of a Lightning checkpoint. No live tensor is touched.

    Args:
        checkpoint: as Lightning gathered it.
        names: of the optimizer's parameters, by index.
    """
    masks = _masks(checkpoint)
    checkpoint[NAMES] = names

    def select_kept(layer: str, axis: int, tensor: Tensor) -> Tensor:
        return tensor.index_select(axis, masks[layer].nonzero().flatten())

    _change_factors(checkpoint, select_kept)


def put_back_pruned(checkpoint: dict[str, Any]) -> None:
    """Put zeros where `leave_out_pruned` left components out; change nothing where it did not."""
    if NAMES not in checkpoint:
        return
    masks = _masks(checkpoint)

    def widen(layer: str, axis: int, tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        shape[axis] = len(masks[layer])
        kept = masks[layer].nonzero().flatten()
        return tensor.new_zeros(shape).index_copy_(axis, kept, tensor)

    _change_factors(checkpoint, widen)
    del checkpoint[NAMES]


def _masks(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Return the masks by their layer's name."""
    masks = {}
    for name, tensor in checkpoint["state_dict"].items():
        if name.endswith(".mask"):
            masks[name.removesuffix(".mask")] = tensor
    return masks


def _change_factors(checkpoint: dict[str, Any], change: Change) -> None:
    """Change the factors of all masked layers: the weights, their average, and their moments."""
    masked = _masks(checkpoint)

    def changed(name: str, value: Any) -> Any:
        layer, _, factor = name.rpartition(".")
        is_factor = layer in masked and factor in COMPONENT_AXIS
        if not is_factor or not isinstance(value, Tensor) or value.ndim == 0:
            return value
        return change(layer, COMPONENT_AXIS[factor], value)

    for part in ("state_dict", "average"):
        if part in checkpoint:
            weights = checkpoint[part].items()
            checkpoint[part] = {name: changed(name, value) for name, value in weights}
    names = checkpoint[NAMES]
    states = []
    for saved in checkpoint["optimizer_states"]:
        moments: dict[int, dict[str, Any]] = {}
        for index, state in saved["state"].items():
            moments[index] = {key: changed(names[index], value) for key, value in state.items()}
        states.append({**saved, "state": moments})
    checkpoint["optimizer_states"] = states
