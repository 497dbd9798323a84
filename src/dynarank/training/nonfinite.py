"""A loss or a gradient that is not finite ends the run before the update, saying where it began."""

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


class Watch:
    """The losses of an accumulation window, looked at once, with the gradient's norm: one synchronisation an update."""

    def __init__(self) -> None:
        self._window: list[tuple[Tensor, Batch]] = []

    def see(self, loss: Tensor, batch: Batch) -> None:
        """Remember a batch's loss, a scalar without gradient."""
        self._window.append((loss, batch))

    def check(self, step: int, model: nn.Module, norm: Tensor | None) -> None:
        """Forget the window. Raises `NonFiniteError` where a loss in it, or the gradient's norm if given, is not finite."""
        window, self._window = self._window, []
        values = torch.stack(
            [loss.float() for loss, _ in window] + ([] if norm is None else [norm.float()])
        )
        if bool(values.isfinite().all()):
            return
        for loss, batch in window:
            if not bool(loss.isfinite()):
                where = first_nonfinite(model, batch) or "the loss itself"
                raise NonFiniteError(step, f"the loss is {float(loss):g}; first at {where}")
        where = first_in_backward(model) or "its norm alone, which overflows"
        raise NonFiniteError(step, f"the gradient is not finite; first at {where}")


def first_in_backward(model: nn.Module) -> str | None:
    """The parameter nearest to the loss whose gradient is not finite; None if all are."""
    names = [
        n
        for n, p in model.named_parameters()
        if p.grad is not None and not bool(p.grad.isfinite().all())
    ]
    return f"parameter {names[-1]}" if names else None


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

    handles = [
        module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name
    ]
    try:
        model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
