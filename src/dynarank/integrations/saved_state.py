"""What a resumed run needs beside a checkpoint's plain adapter: the raw factors and the allocator.

A checkpoint's adapter holds diag(c * mask) A, from which A and c cannot be told apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynarank.allocation.allocator import RankAllocator
from dynarank.integrations.gate import GatedLayer

FILE = "dynarank.safetensors"
"""The file's name in a checkpoint's folder."""
_LAST_FILE = "trainer_state.json"
"""The last file that transformers' Trainer writes into a checkpoint."""
# B is not among them: no gate changes it, and the checkpoint's plain adapter holds it.
_PARTS = ("lora_A", "lora_c", "mask")
_MOMENTS = ("mean", "deviation")


def raw_factors(layers: Mapping[str, GatedLayer]) -> dict[str, Tensor]:
    """Return copies of A, c and the mask of every layer, on the CPU, by `layer.part`."""
    tensors = {}
    for name, layer in layers.items():
        for part in _PARTS:
            # `cpu()` copies nothing that is there already, and training goes on changing that.
            tensors[f"{name}.{part}"] = getattr(layer, part).detach().cpu().clone()
    return tensors


@torch.no_grad()
def restore_factors(layers: Mapping[str, GatedLayer], tensors: Mapping[str, Tensor]) -> None:
    """Put saved factors into the layers, whose plain adapter has been loaded.

    Raises:
        ValueError: the tensors are of other layers, or of another checkpoint than the adapter.
            Nothing is changed then.
    """
    for name, layer in layers.items():
        missing = [part for part in _PARTS if f"{name}.{part}" not in tensors]
        if missing:
            raise ValueError(f"the saved state of the allocation lacks {name}.{missing[0]}")
        device = layer.mask.device
        A, c, mask = (tensors[f"{name}.{part}"].to(device) for part in _PARTS)
        product = A * c.masked_fill(~mask, 0).unsqueeze(1)  # diag(c * mask) A
        # To the bit: both come from the same float32 numbers, by the same product.
        if product.shape != layer.lora_A.shape or not torch.equal(product, layer.gated_A()):
            raise ValueError(
                f"the saved state of the allocation is of another checkpoint: {name} has other "
                "weights than the adapter that was loaded"
            )
    for name, layer in layers.items():
        for part in _PARTS:
            getattr(layer, part).copy_(tensors[f"{name}.{part}"])


def write_state(path: Path, allocator: RankAllocator, layers: Mapping[str, GatedLayer]) -> None:
    """Write a safetensors file of the raw factors and of all that the allocator knows."""
    from safetensors.torch import save_file

    state = allocator.state_dict()
    tensors = {f"layer.{name}": tensor for name, tensor in raw_factors(layers).items()}
    tensors["ema"] = state.pop("ema")
    moments = state.pop("sensitivity")
    if moments is not None:
        tensors.update(_named_moments(moments))
    state["has_sensitivity"] = moments is not None
    # A kill while it is written leaves no half of a file under the name that is read.
    partial = path.with_name(path.name + ".partial")
    # Metadata of a safetensors file is text alone.
    save_file(tensors, partial, metadata={"allocator": json.dumps(state)})
    partial.replace(path)


def _named_moments(moments: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    """Return the moments of the score `sensitivity` under the names that they have in the file."""
    tensors = {}
    for key in _MOMENTS:
        for index, tensor in enumerate(moments[key]):
            # Zeros before the number keep sorted names in the order of the layers.
            tensors[f"sensitivity.{key}.{index:05d}"] = tensor.contiguous()
    return tensors


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return an allocator's state and the layers' raw factors, as `write_state` wrote them.

    Raises:
        ValueError: the file cannot be read, or is no such file.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            state: dict[str, Any] = json.loads((file.metadata() or {})["allocator"])
            # The open file has keys(), but cannot be gone through itself.
            for key in file.keys():  # noqa: SIM118
                tensors[key] = file.get_tensor(key)
        state["ema"] = tensors.pop("ema")
        has_moments = state.pop("has_sensitivity")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: is damaged, or no state of an allocation ({error})") from None
    moments: dict[str, list[Tensor]] = {}
    for key in _MOMENTS:
        names = sorted(name for name in tensors if name.startswith(f"sensitivity.{key}."))
        moments[key] = [tensors.pop(name) for name in names]
    state["sensitivity"] = moments if has_moments else None
    return state, {name.removeprefix("layer."): tensor for name, tensor in tensors.items()}


def state_file(folders: Iterable[Any], step: int) -> Path:
    """Return the first folder's allocation file that is there: the one to resume from at a step.

    Args:
        folders: where it may be. Entries that name no folder, as None or True, are passed over.

    Raises:
        ValueError: it is in none of them.
    """
    tried = [Path(folder) / FILE for folder in folders if isinstance(folder, str | Path)]
    for path in tried:
        if path.is_file():
            return path
    raise ValueError(
        f"{' and '.join(map(str, tried))}: there is no state of the allocation, without which "
        "the run cannot be resumed. Give RankAllocationCallback(resume_from=...), the folder "
        f"of checkpoint-{step}, or start the run anew"
    )


def newest_saved(output_dir: str, step: int) -> Path:
    """Return where the allocation's file goes in the checkpoint that a Trainer has just written."""
    name = f"checkpoint-{step}"
    root = Path(output_dir)
    # A search over hyperparameters has a folder for each trial.
    saved = [root / name / _LAST_FILE, *root.glob(f"run-*/{name}/{_LAST_FILE}")]
    newest = max((path for path in saved if path.is_file()), key=_changed)
    return newest.with_name(FILE)


def _changed(path: Path) -> float:
    return path.stat().st_mtime
