"""The ranks of a trained adapter, for training plain LoRA on them, here and elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping

from dynarank.adapters.lora_files import LoraFiles
from dynarank.adapters.reader_forms import scale_settings, without_zeros


def ranks_of(adapter: LoraFiles) -> dict[str, int]:
    """Return the rank of each layer by module name; layers of rank 0 are left out.

    Components that are exactly zero do not count: a padded adapter has some.
    """
    factors = without_zeros(adapter.factors)
    return {name: len(lora_A) for name, (lora_A, _) in factors.items() if len(lora_A)}


def as_settings(ranks: Mapping[str, int]) -> str:
    """Return the settings of PEFT, axolotl and LLaMA-Factory that give these ranks, as text.

    Args:
        ranks: by module name, each at least 1.
    """
    names = json.dumps(sorted(ranks))
    pattern = json.dumps(_escaped(ranks))
    largest = max(ranks.values())
    return f"""\
# PEFT
LoraConfig(
    r={largest},
    lora_alpha={largest},
    target_modules={names},
    rank_pattern={pattern},
    alpha_pattern={pattern},
)

# axolotl (YAML); a layer of rank k then has the scale lora_alpha / k
lora_r: {largest}
lora_alpha: {largest}
lora_target_modules: {names}
lora_rank_pattern: {pattern}

# LLaMA-Factory (YAML); it has no rank pattern of its own: only the modules can be named
lora_rank: {round(sum(ranks.values()) / len(ranks))}
lora_target: {",".join(sorted(ranks))}
"""


def _escaped(ranks: Mapping[str, int]) -> dict[str, int]:
    """Return the ranks under patterns that fit one module each, as PEFT reads patterns."""
    import torch

    # `scale_settings` reads the ranks from the factors' shapes alone.
    factors = {name: (torch.empty(rank, 1), torch.empty(1, rank)) for name, rank in ranks.items()}
    pattern: dict[str, int] = scale_settings(factors, "peft")["rank_pattern"]
    return pattern
