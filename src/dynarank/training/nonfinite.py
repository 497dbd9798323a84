"""A loss that is not finite ends the run, saying where it began."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynarank.tasks.base import Batch


class NonFiniteError(FloatingPointError):
    """Raised before the update, so that the weights and the last checkpoint stay good."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"step {step}: {what}")
        self.step = step


@torch.no_grad()
def first_nonfinite(model: nn.Module, batch: Batch) -> str | None:
    """Where in a forward pass values first stop being finite: a parameter, an input or a module; None if nowhere."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"parameter {name}"
    for name, value in batch.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return f"the batch's {name}"
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(f"{name} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
