"""AdamW with linear warm-up and linear decay, as in the paper's runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dynarank.config.schema import OptimizerConfig

Ratios = Sequence[tuple[Sequence[nn.Parameter], float]]


def parameter_groups(
    model: nn.Module, weight_decay: float, lr: float = 0.0, ratios: Ratios = ()
) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay; vectors (c, biases, norms) do not.

    Those named in `ratios` stand in groups of their own, undecayed, at a multiple of `lr`.
    """
    apart = {id(parameter) for parameters, _ in ratios for parameter in parameters}
    trainable = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        *(
            {"params": list(parameters), "weight_decay": 0.0, "lr": ratio * lr}
            for parameters, ratio in ratios
        ),
    ]


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, lr: float, total_steps: int, ratios: Ratios = ()
) -> dict[str, Any]:
    """What `configure_optimizers` returns. The schedule spans `total_steps` optimizer steps."""
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay, lr, ratios), lr=lr)
    warmup = int(config.warmup * total_steps)
    scheduler = get_linear_schedule_with_warmup(optimizer, warmup, total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def resolve_total_steps(
    batches_per_epoch: int, epochs: int, accumulate: int, max_steps: int | None
) -> int:
    """T, the optimizer steps of the run: an epoch's last, partial accumulation window is a step of its own."""
    assert batches_per_epoch > 0
    steps = epochs * -(-batches_per_epoch // accumulate)
    return steps if max_steps is None else min(steps, max_steps)
