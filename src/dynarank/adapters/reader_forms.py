"""The forms in which an adapter of mixed ranks is written, and who reads each one rightly.

Readers differ in the scale s by which they multiply B A. Legend: A (k, d_in) and B (d_out, k) of a
layer of rank k, r the largest k of the adapter.

    PEFT                          s = alpha of the layer / rank of the layer, by both patterns
    vLLM, SGLang, TGI, LoRAX      s = lora_alpha / r for all layers
    llama.cpp, Ollama             s = lora_alpha / k, by each tensor's own rank
    mlx-lm                        s = the scale that is stated, for all layers

No form without zeros can be right for vLLM and for llama.cpp: the first divides by r, the second by
k. So there are several:

    peft     s = 1 for PEFT and for vLLM: both patterns hold k, and lora_alpha = r
    gguf     s = r / k for PEFT and for llama.cpp, with B multiplied by k / r: rank_pattern alone
    padded   s = 1 for all: every layer is filled up with zeros to r
    mlx      as padded, transposed, under mlx-lm's names
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dynarank.adapters import FORMS
from dynarank.adapters.folding import Factors

AUTO = "auto"
"""`padded` for a language model, else `peft`."""
READERS = {
    "peft": "PEFT and transformers; vLLM, SGLang, TGI and LoRAX. Not llama.cpp, Ollama or MLX",
    "gguf": "llama.cpp's convert_lora_to_gguf.py, and so Ollama; PEFT and transformers. Not vLLM",
    "padded": "PEFT and transformers; vLLM, SGLang, TGI and LoRAX; llama.cpp and Ollama",
    "mlx": "mlx-lm",
}
"""Who reads a form rightly."""
_ALL_LAYERS = 1_000_000
"""mlx-lm adapts the last so many layers of a model; what is not in the file stays zero there."""
GENERATES = "CAUSAL_LM"
"""PEFT's task type of the models that other readers than PEFT take."""


def resolve_form(form: str, task_type: str | None) -> str:
    """Return the form that is meant; `auto` depends on PEFT's type of the task.

    Raises:
        ValueError: there is no such form.
    """
    if form not in (AUTO, *FORMS):
        raise ValueError(f"form = {form!r}: must be one of {', '.join((AUTO, *FORMS))}")
    if form != AUTO:
        return form
    return "padded" if task_type == GENERATES else "peft"


def in_form(factors: Mapping[str, Factors], form: str) -> dict[str, Factors]:
    """Return factors of scale 1 as a form stores them.

    Args:
        factors: A (k, d_in) and B (d_out, k) by module name, every k at least 1.
        form: one of `FORMS`.
    """
    r = max(len(lora_A) for lora_A, _ in factors.values())
    stored = {}
    for name, (lora_A, lora_B) in factors.items():
        k = len(lora_A)
        if form == "gguf":
            stored[name] = (lora_A, lora_B * (k / r))
        elif form in ("padded", "mlx"):
            stored[name] = (_with_rows(lora_A, r), _with_rows(lora_B.T, r).T)
        else:
            stored[name] = (lora_A, lora_B)
    return stored


def scale_settings(factors: Mapping[str, Factors], form: str) -> dict[str, Any]:
    """Return the fields of PEFT's configuration by which each reader finds the scale.

    The keys of patterns are whole escaped names, since PEFT reads them as regular expressions.
    """
    ranks = {name: len(lora_A) for name, (lora_A, _) in factors.items()}
    r = max(ranks.values())
    # PEFT matches the ends of names: without ^, `output.dense` is `attention.output.dense`, too.
    pattern = {"^" + re.escape(name): rank for name, rank in ranks.items()}
    return {
        "r": r,
        "lora_alpha": r,
        "rank_pattern": dict(pattern) if form in ("peft", "gguf") else {},
        "alpha_pattern": dict(pattern) if form == "peft" else {},
    }


def names_to_exclude(kept: Iterable[str], modules: Iterable[str]) -> list[str] | None:
    """Return PEFT's `exclude_modules` beside the full names of the kept layers; None for none.

    PEFT takes each name for the end of others, too, and would give those an adapter of zeros.

    Args:
        kept: the full names of the layers that the adapter has.
        modules: the full names of all modules that are known.
    """
    kept_names = set(kept)
    ends = tuple("." + name for name in kept_names)
    excluded = []
    for module in modules:
        adapted_by_mistake = module not in kept_names and module.endswith(ends)
        # An excluded name is the end of others likewise, and may be that of a kept one.
        if adapted_by_mistake and not _ends_one_of(kept_names, module):
            excluded.append(module)
    return sorted(excluded) or None


def _ends_one_of(names: Iterable[str], module: str) -> bool:
    return any(name.endswith("." + module) for name in names)


def without_zeros(factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """Return the factors without components that are exactly zero, as padding is; k may be 0."""
    kept = {}
    for name, (lora_A, lora_B) in factors.items():
        live = lora_A.ne(0).any(dim=1) & lora_B.ne(0).any(dim=0)
        kept[name] = (lora_A[live], lora_B[:, live])
    return kept


def mlx_files(factors: Mapping[str, Factors]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return mlx-lm's tensors and configuration of an adapter.

    mlx-lm computes y = W x + scale (x a) b, with a (d_in, r) and b (r, d_out).

    Args:
        factors: A (k, d_in) and B (d_out, k) by module name, of scale 1.
    """
    tensors = {}
    for name, (lora_A, lora_B) in in_form(factors, "mlx").items():
        tensors[f"{name}.lora_a"] = lora_A.T.contiguous()
        tensors[f"{name}.lora_b"] = lora_B.T.contiguous()
    # mlx-lm looks for these names inside each block, and adapts all blocks alike.
    keys = {re.sub(r"^.*?\.\d+\.", "", name) for name in factors}
    config = {
        "fine_tune_type": "lora",
        "num_layers": _ALL_LAYERS,
        "lora_parameters": {
            "rank": max(len(lora_A) for lora_A, _ in factors.values()),
            "scale": 1.0,
            "dropout": 0.0,
            "keys": sorted(keys),
        },
    }
    return tensors, config


def _with_rows(matrix: Tensor, rows: int) -> Tensor:
    """Return a matrix (n, d) filled up with zeros to (rows, d)."""
    missing = matrix.new_zeros(rows - len(matrix), matrix.shape[1])
    return torch.cat([matrix, missing])
