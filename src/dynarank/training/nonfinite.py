"""A loss or a gradient that is not finite ends the run before the update, naming where it began."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from dynarank.tasks.base import Batch
from dynarank.training.late_flag import LateFlag


class NonFiniteError(FloatingPointError):
    """Raised before the update, so that the weights and the last checkpoint stay good."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"step {step}: {what}")
        self.step = step


BEHIND_THE_HOST = ("cuda", "xpu")
"""Devices on which to read a value waits until they have come so far."""
Window = list[tuple[Tensor, Batch]]
"""The losses of an accumulation window, and their batches."""


class FiniteCheck(Callback):
    """Checks the losses of an accumulation window and the gradient's norm, once before an update.

    Whether all of them are finite is worked out on the device. By default it is read at once, in
    one transfer. To read it makes the host wait for an accelerator; see `read_late`.
    """

    def __init__(self) -> None:
        self._window: Window = []
        self._late: LateFlag | None = None
        self._undecided: list[tuple[int, Window]] = []
        self._model: nn.Module | None = None

    def read_late(self, device: torch.device) -> None:
        """Read no flag before it is there without waiting, mostly in the next step.

        The optimizer must be a fused one. From the first step that is not finite on, it skips every
        update on the device, as it does for a loss scaler. So the weights stay as they were before
        that step, until the flag is read and the run ends.
        """
        self._late = LateFlag(device)

    def add(self, loss: Tensor, batch: Batch) -> None:
        """Remember a batch of the window and its loss, a scalar without gradient."""
        self._window.append((loss, batch))

    def check(
        self, step: int, model: nn.Module, norm: Tensor | None, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check the window and forget it.

        Args:
            step: the optimizer step that is about to be taken.
            model: where to look for the place that is not finite.
            norm: the gradient's norm, a scalar. None leaves the gradient to a loss scaler.
            optimizer: what is about to step; it skips the step where the flag is read late.

        Raises:
            NonFiniteError: a loss of the window or the norm is not finite; or, where flags are read
                late, those of an earlier step were not.
        """
        window = self._window
        self._window = []
        # Loss and norm may differ in type, and `stack` takes one type.
        values = [loss.float() for loss, _ in window]
        if norm is not None:
            values.append(norm.float())
        finite = torch.stack(values).isfinite().all()
        if self._late is None:
            if not bool(finite):
                raise _error(step, window, model)
            return
        # GradScaler sets it on fused optimizers too: where it is 1, the kernel updates nothing.
        optimizer.found_inf = self._late.flag  # type: ignore[attr-defined]
        # Kept for `_decide`, which names the place one or more steps later.
        self._model = model
        self._undecided.append((step, window))
        self._late.add(~finite)
        self._decide(self._late.read())

    def settle(self, trainer: Trainer) -> None:
        """Wait for all steps that are not decided yet.

        Raises:
            NonFiniteError: one of them was not finite.
        """
        if self._late is not None and self._undecided:
            # As in training, because the place is found by running the model again.
            with trainer.precision_plugin.forward_context():
                self._decide(self._late.wait())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read late where reading waits, and the optimizer can skip a step on the device."""
        # torch's other forms of AdamW raise where found_inf is set.
        is_fused = trainer.optimizers[0].defaults.get("fused")
        if pl_module.device.type in BEHIND_THE_HOST and is_fused:
            self.read_late(pl_module.device)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let no step be scored before it is decided."""
        self.settle(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let no step be kept before it is decided."""
        self.settle(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let no step be the last before it is decided."""
        self.settle(trainer)

    def _decide(self, read: tuple[int, bool] | None) -> None:
        """Forget the oldest steps, as many as were read; raise if one of them was not finite."""
        if read is None:
            return
        count, was_bad = read
        decided, self._undecided = self._undecided[:count], self._undecided[count:]
        if was_bad:
            assert self._model is not None
            raise _first_error(decided, self._model)


def _error(step: int, window: Window, model: nn.Module) -> NonFiniteError:
    """Return the error for a window that was not finite, with the place where it began."""
    for loss, batch in window:
        if not bool(loss.isfinite()):
            place = first_nonfinite(model, batch) or "the loss itself"
            return NonFiniteError(step, f"the loss is {float(loss):g}; first at {place}")
    place = first_nonfinite_gradient(model) or "its norm alone, which overflows"
    return NonFiniteError(step, f"the gradient is not finite; first at {place}")


def _first_error(steps: list[tuple[int, Window]], model: nn.Module) -> NonFiniteError:
    """Return the error for the first of some steps that were not finite, on unharmed weights."""
    for step, window in steps:
        # Losses are kept, and tell the step without another pass.
        if not all(bool(loss.isfinite()) for loss, _ in window):
            return _error(step, window, model)
    for step, window in steps:  # their gradients are gone, and are made again
        for _, batch in window:
            model.zero_grad()  # what stands there is of another batch
            model(**batch).loss.backward()
            if place := first_nonfinite_gradient(model):
                return NonFiniteError(step, f"the gradient is not finite; first at {place}")
    # Dropout has drawn anew, so that what was not finite then may be finite now.
    first, last = steps[0][0], steps[-1][0]
    which = f"{first}" if first == last else f"{first} to {last}"
    return NonFiniteError(
        first, f"the gradient is not finite, in step {which}; its batch made again shows no place"
    )


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
    # A parameter first, because it spoils all outputs after it.
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
        # The root has no name, and its output is no tensor.
        if name:
            handles.append(module.register_forward_hook(make_hook(name)))
    try:
        model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return places[0] if places else None
