"""Read a PEFT LoRA adapter's folder as factors of scale 1, and write one like it of other ranks.

It reads adapter_config.json and adapter_model.safetensors, and needs no model.

Legend: A (k, d_in) and B (d_out, k) of a layer, and s its scale, alpha / k or with rsLoRA
alpha / sqrt(k).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynarank.adapters.adapter_checks import CONFIG, WEIGHTS, read_json
from dynarank.adapters.folding import Factors
from dynarank.adapters.reader_forms import (
    in_form,
    mlx_files,
    names_to_exclude,
    resolve_form,
    scale_settings,
)
from dynarank.durable_files import make_readable
from dynarank.errors import UserError

_A = ".lora_A.weight"
_B = ".lora_B.weight"
_MODEL = "base_model.model."
"""What PEFT puts before a module's name."""
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""PEFT's initializations that take the first update out of the base weights."""
_QUANTIFIER = re.compile(r"[*+{]")
_QUANTIFIED_GROUP = re.compile(r"\)[*+{?]")
_MOST_QUANTIFIERS = 3
"""In a pattern of a stranger's file. With more, a match could take hours."""


@dataclass(frozen=True)
class LoraFiles:
    """A PEFT LoRA adapter, read."""

    folder: Path
    config: dict[str, Any]
    factors: dict[str, Factors]
    """A (k, d_in) and B (d_out, k) by module name, s folded into B; float32."""
    others: dict[str, Tensor]
    """Every other tensor (a task head, say), by its key in the file."""
    dtype: torch.dtype
    """Of the factors in the file."""


def read_lora(folder: Path) -> LoraFiles:
    """Read a PEFT LoRA adapter's folder.

    Args:
        folder: it holds adapter_config.json and adapter_model.safetensors.

    Returns:
        the factors with the scale folded in, and all that is needed to write an adapter like it.

    Raises:
        UserError: the folder holds none, or one of a kind whose ranks cannot be changed: DoRA's
            magnitudes, biases of B, embeddings, parameters of experts, or an initialization that
            changed the base.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config_path, weights_path = folder / CONFIG, folder / WEIGHTS
    config = read_json(config_path)
    _check_kind(config_path, config)
    try:
        tensors = load_file(weights_path)
    except FileNotFoundError:
        raise UserError(f"{weights_path}: there is no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights_path}: cannot be read ({error})") from None
    prefixes = [key.removesuffix(_A) for key in tensors if key.endswith(_A)]
    factors: dict[str, Factors] = {}
    dtype = torch.float32
    for prefix in prefixes:
        lora_A, lora_B = _take_factors(weights_path, tensors, prefix)
        dtype = lora_A.dtype
        name = prefix.removeprefix(_MODEL)
        scale = _scale(config_path, config, name, rank=len(lora_A))
        factors[name] = (lora_A.float(), lora_B.float() * scale)
    if not factors:
        raise UserError(f"{weights_path}: holds no lora_A: there is nothing to read")
    # The factors of linear layers were taken out above.
    odd = next((key for key in tensors if ".lora_" in key), None)
    if odd is not None:
        raise UserError(f"{weights_path}: {odd}: only linear layers are read")
    return LoraFiles(folder=folder, config=config, factors=factors, others=tensors, dtype=dtype)


def _take_factors(path: Path, tensors: dict[str, Tensor], prefix: str) -> Factors:
    """Take A (k, d_in) and B (d_out, k) of one layer out of a file's tensors, as they are stored.

    Raises:
        UserError: B is missing, or the two are no factors of a linear layer.
    """
    lora_A = tensors.pop(prefix + _A)
    lora_B = tensors.pop(prefix + _B, None)
    if lora_B is None:
        raise UserError(f"{path}: {prefix} has lora_A and no lora_B")
    if lora_A.ndim != 2 or lora_B.ndim != 2 or len(lora_A) != lora_B.shape[1]:
        raise UserError(
            f"{path}: {prefix} has lora_A {tuple(lora_A.shape)} and lora_B "
            f"{tuple(lora_B.shape)}: only linear layers are read"
        )
    return lora_A, lora_B


def _check_kind(path: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type = {config.get('peft_type')!r}: must be LORA")
    for setting in ("use_dora", "lora_bias"):
        if config.get(setting):
            raise UserError(f"{path}: {setting} = true: such an adapter is more than its factors")
    for setting in ("target_parameters", "use_bdlora"):
        if config.get(setting):
            raise UserError(
                f"{path}: {setting} = {str(config[setting])[:80]}: only the factors of linear "
                "layers are read, not those of parameters (as of experts) or of blocks. PEFT's "
                "merge_and_unload adds them to the weights"
            )
    start = str(config.get("init_lora_weights", "")).lower()
    # By its beginning: a number of iterations may follow, as in `pissa_niter_16`.
    if start.startswith(_CHANGES_THE_BASE):
        raise UserError(
            f"{path}: init_lora_weights = {start!r} changed the base weights. Convert it to "
            "plain LoRA first: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )


def _scale(path: Path, config: Mapping[str, Any], name: str, rank: int) -> float:
    """Return s of a layer, as PEFT computes it."""
    alpha = config.get("lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise UserError(f"{path}: alpha_pattern = {patterns!r}: must be a map of names to numbers")
    # PEFT takes the first pattern that fits, not the longest.
    for pattern, of_pattern in patterns.items():
        if _fits(path, pattern, name):
            alpha = of_pattern
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise UserError(f"{path}: lora_alpha = {alpha!r}: must be a number")
    rank = max(rank, 1)  # a layer of rank 0 has no component to scale
    if config.get("use_rslora"):
        return float(alpha) / rank**0.5
    return float(alpha) / rank


def _fits(path: Path, pattern: str, name: str) -> bool:
    """Return whether PEFT applies `pattern`, an expression for the end of a name, to a module."""
    quantifiers = len(_QUANTIFIER.findall(pattern))
    if _QUANTIFIED_GROUP.search(pattern) or quantifiers > _MOST_QUANTIFIERS:
        raise UserError(f"{path}: the pattern {pattern[:80]!r} could take for ever to match")
    try:
        # As PEFT's `get_pattern_key` has it, so that both find the same layers.
        return re.match(rf"(.*\.)?({pattern})$", name) is not None
    except re.error as error:
        raise UserError(f"{path}: the pattern {pattern[:80]!r} is not valid: {error}") from None


def write_lora(
    source: LoraFiles, factors: Mapping[str, Factors], folder: Path, form: str = "auto"
) -> dict[str, int]:
    """Write an adapter like `source` with other factors of scale 1; return the ranks by name.

    Layers of rank 0 are left out. What else lies in the source's folder (a tokenizer, a record of
    the run) is copied.

    Args:
        source: the adapter whose settings, dtype and other tensors are kept.
        factors: A (k, d_in) and B (d_out, k) by module name; k may differ, and be 0.
        folder: where the adapter is written; it is made.
        form: how the ranks are stored, and so who reads it: see `reader_forms`.

    Raises:
        UserError: every layer has rank 0; or mlx-lm, which has no place for a task's head, is to
            read one.
    """
    from safetensors.torch import save_file

    ranks = {name: len(lora_A) for name, (lora_A, _) in factors.items()}
    kept = sorted(name for name, rank in ranks.items() if rank)
    if not kept:
        raise UserError("every layer would have rank 0: no adapter would be left. Keep more of it")
    form = resolve_form(form, source.config.get("task_type"))
    folder.mkdir(parents=True, exist_ok=True)
    kept_factors = {name: factors[name] for name in kept}
    if form == "mlx":
        _write_mlx(source, kept_factors, folder)
        make_readable(folder)
        return ranks
    tensors = dict(source.others)
    for name, (lora_A, lora_B) in in_form(kept_factors, form).items():
        tensors[_MODEL + name + _A] = lora_A.to(source.dtype).contiguous()
        tensors[_MODEL + name + _B] = lora_B.to(source.dtype).contiguous()
    config = {
        **source.config,
        **scale_settings(kept_factors, form),
        # The scale is in the factors, and their start is over: some starts refuse other ranks.
        "use_rslora": False,
        "init_lora_weights": True,
        "target_modules": kept,
        # target_modules names every layer in full, and of other modules only these are known.
        "exclude_modules": names_to_exclude(kept, ranks),
        # PEFT would choose from the named layers by these once more.
        "layers_to_transform": None,
        "layers_pattern": None,
    }
    for path in sorted(source.folder.iterdir()):
        # The two that are written below, with other ranks than the source's.
        if path.is_file() and path.name not in (CONFIG, WEIGHTS):
            shutil.copyfile(path, folder / path.name)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    make_readable(folder)
    return ranks


def _write_mlx(source: LoraFiles, factors: Mapping[str, Factors], folder: Path) -> None:
    """Write an adapter as mlx-lm reads it."""
    from safetensors.torch import save_file

    if source.others:
        raise UserError(
            f"{source.folder}: holds {next(iter(source.others))} beside its factors, which mlx-lm "
            "has no place for. Merge the adapter instead"
        )
    tensors, config = mlx_files(factors)
    stored = {name: tensor.to(source.dtype) for name, tensor in tensors.items()}
    save_file(stored, folder / "adapters.safetensors", metadata={"format": "mlx"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
