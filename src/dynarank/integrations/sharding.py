"""Refuse adapters that are divided among devices, where ranks can be neither scored nor pruned."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_KINDS = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA_FSDP")
"""What accelerate calls the ways of training that divide or copy parameters."""


def check_local(name: str, A: torch.Tensor, B: torch.Tensor, rank: int) -> None:
    """Raise `ValueError` where A or B is sharded over several devices."""
    for factor in (A, B):
        # FSDP2's tensors are of another type, FSDP1's are flat, and ZeRO-3's empty with a ds_id.
        whole = type(factor) is nn.Parameter and factor.ndim == 2 and not hasattr(factor, "ds_id")
        if not whole or rank not in factor.shape:
            raise ValueError(
                f"{name}: its adapter is sharded over several devices (DeepSpeed ZeRO-3, FSDP or "
                "tensor parallelism), where ranks cannot be scored. Train with DDP, or keep the "
                "adapters out of the sharding"
            )


def refuse_sharding(args: Any) -> None:
    """Raise `ValueError` where the Trainer divides the model's parameters among devices."""
    from accelerate.state import AcceleratorState

    kind = "DEEPSPEED" if getattr(args, "deepspeed", None) else ""
    if getattr(args, "fsdp", None):
        kind = "FSDP"
    # Without this look, AcceleratorState() would make the state, and so settle it too early.
    if not kind and AcceleratorState._shared_state:
        kind = AcceleratorState().distributed_type.value
    if kind in _KINDS:
        raise ValueError(
            f"dynamic ranks do not work under {kind}: it keeps parts or copies of the adapters, "
            "where components can be neither scored nor pruned. Use DDP (torchrun without it): "
            "adapters are small"
        )
