"""A run as a plain model: its update added to the weights of its base."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.durable_files import make_readable
from dynarank.errors import UserError

if TYPE_CHECKING:
    import torch

    from dynarank.pretrained.hub import HubConfig

DTYPES = ("float32", "bfloat16")
"""What the weights of a merged model may be stored in."""


def write_merged(
    adapter: Path, out: Path, hub: HubConfig, base: str | None, dtype: str = DTYPES[0]
) -> list[str]:
    """Write a model that needs neither PEFT nor dynarank, and its tokenizer.

    The update is added to the weights in float32, also where the run's base was bfloat16: added in
    bfloat16, most of it would be rounded away.

    Returns:
        what the user should know about the precision, a sentence each.

    Raises:
        UserError: what was trained cannot be added to weights, or not without changing others.
    """
    import peft
    import torch

    from dynarank.runs.base_weights import untie_to_merge
    from dynarank.runs.predictor import load_run

    _check_mergeable(adapter)  # before its base is loaded
    # Whether it may be over its budget was asked when the adapter was looked for.
    loaded = load_run(adapter, hub, base, over_budget=True, widen=True)
    model = loaded.model
    notes = []
    # A method that trains the whole model leaves no update beside it.
    if isinstance(model, peft.PeftModel):
        notes += untie_to_merge(model)
        config = loaded.origin.model_config()
        narrow = config.dtype != DTYPES[0]
        if loaded.dequantized is not None:
            method = config.quantization or loaded.dequantized
            notes.append(
                f"merged into the {method} weights that the run trained on, turned back into "
                "plain ones: the model is not quantized any more"
            )
        if dtype != DTYPES[0]:
            lost = rounded_away(model, getattr(torch, dtype))
            notes.append(f"rounded to {dtype}, {lost:.1%} of the update is lost")
        elif narrow:
            notes.append(
                "merged in float32, so that nothing of the update is lost: twice the size of the "
                "bfloat16 base that the run trained on"
            )
        model = model.merge_and_unload()
    model.to(getattr(torch, dtype)).save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)
    sync_files(out)
    return notes


def _check_mergeable(adapter: Path) -> None:
    """Raise `UserError` where what was trained is no update of weights."""
    from dynarank.adapters.adapter_checks import CONFIG, read_json
    from dynarank.runs.origin import read_origin

    origin = read_origin(adapter)
    is_update = origin.is_peft_adapter and read_json(adapter / CONFIG).get("peft_type") == "LORA"
    if not is_update and not origin.is_whole_model:
        raise UserError(
            f"{adapter}: what method={origin.method} trained is not an update of the model's "
            "weights, so it cannot be merged into them. Use the adapter beside its base model"
        )


def rounded_away(model: Any, dtype: torch.dtype) -> float:
    """Return the share of the update that rounding the merged weights to `dtype` loses.

    It is the norm of the rounding error over the norm of the update, over all adapted matrices
    together. What rounding the base alone would cost is not counted.

    Args:
        model: a peft.PeftModel with LoRA layers, in float32.
    """
    lost, whole = 0.0, 0.0
    for module in model.modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        base = module.get_base_layer().weight.detach()
        rounded_base = base.to(dtype).float()
        for name in module.active_adapters:
            update = module.get_delta_weight(name).detach()
            kept = (base + update).to(dtype).float() - rounded_base
            lost += float((kept - update).square().sum())
            whole += float(update.square().sum())
    return (lost / whole) ** 0.5 if whole else 0.0


def sync_files(folder: Path) -> None:
    """Have a folder's files readable by others, and whole on the disk when the command ends."""
    make_readable(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
