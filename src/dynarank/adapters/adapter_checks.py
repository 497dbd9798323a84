"""Check an adapter's folder before anything of it is loaded, since it may come from anyone.

PEFT's adapter_config.json can name modules to import, other models to fetch, regular expressions
and sizes. Only what the exports of this project write is accepted. Weights are read by safetensors
alone.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

from dynarank.errors import UserError, kind_and_first_line

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_COMMON = (
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "modules_to_save",
)
_LORA = (
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "fan_in_fan_out",
)
_PROMPT_SIZES = (
    "num_virtual_tokens",
    "token_dim",
    "num_transformer_submodules",
    "num_attention_heads",
    "num_layers",
)
WRITTEN = {
    "LORA": (*_COMMON, *_LORA),
    "PROMPT_TUNING": (*_COMMON, *_PROMPT_SIZES),
}
"""By peft_type, the settings that may differ from PEFT's defaults."""
MODULE_NAME = re.compile(r"\w+(\.\w+)*")
NAME_PATTERN = re.compile(r"\^\w+(\\?\.\w+)*")
"""A whole module name, escaped: no expression that could run for ever."""
MAX_TENSORS = 100_000
MAX_TARGETS = 10_000
MAX_TARGET_LENGTH = 200
# A repeated group inside which something repeats can take exponential time.
# A `?` takes a group at most once, and so may follow it.
_REPEATED_GROUP = re.compile(r"[)\]][*+{]")
_REPEATS = re.compile(r"[*+{?]")


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping that a JSON file holds. Raises `UserError` where it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    # Brackets nested very deeply end json's parser in a RecursionError.
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {kind_and_first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object, not a {type(content).__name__}")
    return content


def check_peft_adapter(folder: Path) -> None:
    """Check that a folder's PEFT adapter has a form that this project writes.

    Raises:
        UserError: it has another form, sizes that its weights do not have, or weights that are
            damaged or not finite.
    """
    path = folder / CONFIG
    config = read_json(path)
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in WRITTEN:
        raise UserError(f"{path}: peft_type = {peft_type!r}: must be one of {', '.join(WRITTEN)}")
    defaults = _peft_defaults(peft_type)
    for name, value in config.items():
        # What is empty or false asks PEFT for nothing, whatever its name is.
        if name not in WRITTEN[peft_type] and value and value != defaults.get(name):
            raise UserError(
                # Cut, since a stranger's value may be as long as the file.
                f"{path}: {name} = {str(value)[:80]!r} is not read from an adapter here. "
                "Take it out"
            )
    shapes = _read_shapes(folder / WEIGHTS)
    if peft_type == "LORA":
        ranks = [shape[0] for name, shape in shapes.items() if name.endswith(".lora_A.weight")]
        _check_lora(path, config, largest=max(ranks, default=0))
    else:
        sizes = {name: config.get(name) or 0 for name in _PROMPT_SIZES}
        _check_sizes(path, sizes, _largest_size(shapes))


def _peft_defaults(peft_type: str) -> dict[str, Any]:
    import peft

    config: peft.PeftConfig
    if peft_type == "LORA":
        config = peft.LoraConfig()
    else:
        config = peft.PromptTuningConfig(num_virtual_tokens=1)
    # Enumerations stand in the file as their values.
    return {name: getattr(value, "value", value) for name, value in config.to_dict().items()}


def _check_lora(path: Path, config: dict[str, Any], largest: int) -> None:
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        if not _is_list_of_names(config.get(name) or []):
            raise UserError(f"{path}: {name} must be a list of module names")
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict) or not all(map(NAME_PATTERN.fullmatch, pattern)):
            raise UserError(
                f"{path}: {name} must map whole module names, '^' before them and dots escaped, "
                "to numbers"
            )
        _check_sizes(path, pattern, largest)
    # An export's scale is alpha / r = 1, so that alpha cannot be above the ranks either.
    _check_sizes(path, {name: config.get(name) for name in ("r", "lora_alpha")}, largest)


def _is_list_of_names(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return all(isinstance(name, str) and MODULE_NAME.fullmatch(name) for name in value)


def _check_sizes(path: Path, sizes: dict[str, Any], largest: int) -> None:
    # PEFT allocates what the file names before it looks at the weights.
    for name, value in sizes.items():
        # Not by isinstance, for which True is a number.
        if type(value) is not int or not 0 <= value <= largest:
            raise UserError(
                f"{path}: {name} = {value!r}: must be a whole number, "
                f"and none above {largest} fits the weights"
            )


def check_targets(path: Path, targets: Any) -> None:
    """Check that targets read from a file are names, or expressions that end soon on any name.

    An expression may hold at most three of `*`, `+`, `{` and `?`, and of these only `?` after a
    group. So its cost grows at most with the cube of a name's length.

    Raises:
        UserError: an entry is no such target.
    """
    entries = targets if isinstance(targets, list) else [targets]
    if len(entries) > MAX_TARGETS:
        raise UserError(f"{path}: {len(entries)} targets: at most {MAX_TARGETS} are read")
    for target in entries:
        fits = isinstance(target, str) and len(target) <= MAX_TARGET_LENGTH
        if not fits or _REPEATED_GROUP.search(target) or len(_REPEATS.findall(target)) > 3:
            raise UserError(
                f"{path}: target {str(target)[:80]!r} must be a module's name or suffix, or a "
                "regular expression without repeated groups and with at most 3 repetitions"
            )


def check_weights(path: Path) -> int:
    """Check that a safetensors file can be read and is finite; return its tensors' largest size.

    Shapes are looked at before any tensor is read. Tensors without elements are refused: their
    other sizes could be any number.

    Raises:
        UserError: it is missing, damaged, or holds too many tensors, an empty one, or a value that
            is not finite.
    """
    return _largest_size(_read_shapes(path))


def _largest_size(shapes: dict[str, list[int]]) -> int:
    """Return the largest size of any axis of any tensor; 0 where there are none."""
    sizes = chain.from_iterable(shapes.values())
    return max(sizes, default=0)


def _read_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shapes of a file's tensors by name, after the checks of `check_weights`."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file. Weights in any other form than safetensors are not "
            "read"
        )
    shapes: dict[str, list[int]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            if len(names) > MAX_TENSORS:
                raise UserError(f"{path}: {len(names)} tensors: at most {MAX_TENSORS} are read")
            for name in names:
                shapes[name] = list(file.get_slice(name).get_shape())
                if 0 in shapes[name]:
                    raise UserError(f"{path}: {name} of shape {shapes[name]} has no elements")
            for name in names:
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise UserError(f"{path}: {name} holds values that are not finite")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is damaged, or no safetensors file ({error})") from None
    return shapes
