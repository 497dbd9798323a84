"""What an adapter's folder must be before anything of it is loaded: it may come from anyone.

PEFT's adapter_config.json can name modules to import, other models to fetch, regular expressions and sizes; only what the
exports of this project write is let through. Weights are read by safetensors alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dynarank.errors import UserError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
COMMON = (
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "modules_to_save",
)
WRITTEN = {
    "LORA": (
        *COMMON,
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "fan_in_fan_out",
    ),
    "PROMPT_TUNING": (
        *(*COMMON, "num_virtual_tokens", "token_dim", "num_transformer_submodules"),
        *("num_attention_heads", "num_layers"),
    ),
}
"""By peft_type, the settings that may differ from PEFT's defaults."""
NAME = re.compile(r"\w+(\.\w+)*")
PATTERN = re.compile(r"\^\w+(\\?\.\w+)*")
"""A whole module name, escaped: no expression that could run for ever."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's mapping. Raises `UserError` where it holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read: {type(error).__name__}: {error}".splitlines()[0]
        ) from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: must hold a JSON object, not a {type(found).__name__}")
    return found


def check_peft_adapter(folder: Path) -> None:
    """Raise `UserError` unless a folder's PEFT adapter is of a form that this project writes, with finite weights."""
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in WRITTEN:
        raise UserError(
            f"{folder / CONFIG}: peft_type = {kind!r}: must be one of {', '.join(WRITTEN)}"
        )
    default = _defaults(kind)
    for name, value in config.items():
        if name not in WRITTEN[kind] and value and value != default.get(name):
            raise UserError(
                f"{folder / CONFIG}: {name} = {str(value)[:80]!r} is not read from an adapter here. Take it out"
            )
    largest = check_weights(folder / WEIGHTS)
    if kind == "LORA":
        _check_lora(folder / CONFIG, config, largest)
    else:
        _check_sizes(
            folder / CONFIG,
            {name: config.get(name) or 0 for name in WRITTEN[kind][len(COMMON) :]},
            largest,
        )


def _defaults(kind: str) -> dict[str, Any]:
    import peft

    config: Any = (
        peft.LoraConfig() if kind == "LORA" else peft.PromptTuningConfig(num_virtual_tokens=1)
    )
    return {name: getattr(value, "value", value) for name, value in config.to_dict().items()}


def _check_lora(path: Path, config: dict[str, Any], largest: int) -> None:
    for name in ("target_modules", "modules_to_save"):
        value = config.get(name) or []
        if not isinstance(value, list) or not all(
            isinstance(one, str) and NAME.fullmatch(one) for one in value
        ):
            raise UserError(f"{path}: {name} must be a list of module names")
    for name in ("rank_pattern", "alpha_pattern"):
        value = config.get(name) or {}
        if not isinstance(value, dict) or not all(PATTERN.fullmatch(one) for one in value):
            raise UserError(
                f"{path}: {name} must map whole module names, '^' before them and dots escaped, to numbers"
            )
        _check_sizes(path, value, largest)
    _check_sizes(path, {name: config.get(name) for name in ("r", "lora_alpha")}, largest)


def _check_sizes(path: Path, sizes: dict[str, Any], largest: int) -> None:
    """PEFT allocates what the file names, before it looks at the weights."""
    for name, value in sizes.items():
        if type(value) is not int or not 0 <= value <= largest:
            raise UserError(
                f"{path}: {name} = {value!r}: must be a whole number, and none above {largest} fits the weights"
            )


def check_weights(path: Path) -> int:
    """Raise `UserError` unless a safetensors file can be read and is finite; returns the largest size of any tensor."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file. Weights in any other form than safetensors are not read"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is damaged, or no safetensors file ({error})") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"{path}: {name} holds values that are not finite")
    return max(_sizes(tensors.values()), default=0)


def _sizes(tensors: Iterable[Any]) -> Iterable[int]:
    return (size for tensor in tensors for size in tensor.shape)
