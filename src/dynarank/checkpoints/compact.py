"""After the freeze, checkpoints hold the kept components alone: what was pruned is zero for good, weights and moments.

Legend: A (r', d_in), B (d_out, r'), c (r') of an adapter, `mask` (r') its kept components.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

AXIS = {"lora_A": 0, "lora_B": 1, "lora_c": 0}
"""Which axis of a factor counts components."""
NAMES = "optimizer_names"
"""A checkpoint's entry that says it is compact: the names of the optimizer's parameters, by index."""


def compact(checkpoint: dict[str, Any], names: list[str]) -> None:
    """Leave the pruned components out of a Lightning checkpoint, whose live tensors are not touched.

    Args:
        names: of the optimizer's parameters, by index.
    """
    kept = _kept(checkpoint)
    checkpoint[NAMES] = names
    _replace(
        checkpoint,
        lambda name, axis, tensor: tensor.index_select(axis, kept[name].nonzero().flatten()),
    )


def expand(checkpoint: dict[str, Any]) -> None:
    """Put zeros where `compact` left components out; nothing, where it did not."""
    if NAMES not in checkpoint:
        return
    kept = _kept(checkpoint)

    def widen(name: str, axis: int, tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        shape[axis] = len(kept[name])
        return tensor.new_zeros(shape).index_copy_(axis, kept[name].nonzero().flatten(), tensor)

    _replace(checkpoint, widen)
    del checkpoint[NAMES]


def _kept(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Masks by their layer's name."""
    return {
        key.removesuffix(".mask"): value
        for key, value in checkpoint["state_dict"].items()
        if key.endswith(".mask")
    }


def _replace(checkpoint: dict[str, Any], change: Callable[[str, int, Tensor], Tensor]) -> None:
    """Change every tensor that is shaped like a masked layer's factor: weights, their average, and moments."""
    masked = _kept(checkpoint)

    def changed(name: str, value: Any) -> Any:
        layer, _, factor = name.rpartition(".")
        if (
            layer not in masked
            or factor not in AXIS
            or not isinstance(value, Tensor)
            or value.ndim == 0
        ):
            return value
        return change(layer, AXIS[factor], value)

    for part in {"state_dict", "average"} & checkpoint.keys():
        checkpoint[part] = {name: changed(name, value) for name, value in checkpoint[part].items()}
    names = checkpoint[NAMES]
    checkpoint["optimizer_states"] = [
        {
            **saved,
            "state": {
                i: {k: changed(names[i], v) for k, v in state.items()}
                for i, state in saved["state"].items()
            },
        }
        for saved in checkpoint["optimizer_states"]
    ]
