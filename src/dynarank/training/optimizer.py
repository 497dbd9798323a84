"""AdamW with linear warm-up and linear decay, as in the paper's runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dynarank.training.config import OptimizerConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay; vectors (c, biases, norms) do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig, lr: float, total_steps: int) -> dict[str, Any]:
    """What `configure_optimizers` returns. The schedule spans `total_steps` optimizer steps."""
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=lr)
    warmup = int(config.warmup * total_steps)
    scheduler = get_linear_schedule_with_warmup(optimizer, warmup, total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def resolve_total_steps(batches_per_epoch: int, epochs: int, accumulate: int, max_steps: int | None) -> int:
    """T, the optimizer steps of the run: an epoch's last, partial accumulation window is a step of its own."""
    assert batches_per_epoch > 0
    steps = epochs * -(-batches_per_epoch // accumulate)
    return steps if max_steps is None else min(steps, max_steps)
