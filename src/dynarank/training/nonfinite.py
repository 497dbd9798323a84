"""A loss or a gradient that is not finite ends the run before the update, naming where it began."""

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


class FiniteCheck:
    """Checks the losses of an accumulation window and the gradient's norm, once before an update.

    Whether all of them are finite is worked out on the device, and read from it in one transfer.
    """

    def __init__(self) -> None:
        self._window: list[tuple[Tensor, Batch]] = []

    def add(self, loss: Tensor, batch: Batch) -> None:
        """Remember a batch of the window and its loss, a scalar without gradient."""
        self._window.append((loss, batch))

    def check(self, step: int, model: nn.Module, norm: Tensor | None) -> None:
        """Check the window and forget it.

        Args:
            step: the optimizer step that is about to be taken.
            model: where to look for the place that is not finite.
            norm: the gradient's norm, a scalar. None leaves the gradient to a loss scaler.

        Raises:
            NonFiniteError: a loss of the window or the norm is not finite.
        """
        window = self._window
        self._window = []
        values = [loss.float() for loss, _ in window]
        if norm is not None:
            values.append(norm.float())
        if bool(torch.stack(values).isfinite().all()):
            return
        for loss, batch in window:
            if not bool(loss.isfinite()):
                place = first_nonfinite(model, batch) or "the loss itself"
                raise NonFiniteError(step, f"the loss is {float(loss):g}; first at {place}")
        place = first_nonfinite_gradient(model) or "its norm alone, which overflows"
        raise NonFiniteError(step, f"the gradient is not finite; first at {place}")


def first_nonfinite_gradient(model: nn.Module) -> str | None:
    """Return the parameter nearest to the loss whose gradient is not finite, or None if all are.

    The backward pass meets the parameters in the opposite of the model's order.
    """
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"parameter {name}"
    return None


@torch.no_grad()
def first_nonfinite(model: nn.Module, batch: Batch) -> str | None:
    """Return where in a forward pass values first stop being finite, or None if nowhere.

    The place is a parameter, an input of the batch, or a module, in this order.
    """
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"parameter {name}"
    for name, value in batch.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return f"the batch's {name}"
    return _first_nonfinite_output(model, batch)


def _first_nonfinite_output(model: nn.Module, batch: Batch) -> str | None:
    """Return the module whose output is the first that is not finite, or None if there is none."""
    places: list[str] = []

    def make_hook(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not places and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                places.append(f"{name} ({type(module).__name__})")

        return hook

    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(make_hook(name)))
    try:
        model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return places[0] if places else None
