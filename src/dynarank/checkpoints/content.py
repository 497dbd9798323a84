"""What a checkpoint holds: the trained part of the model, and all that training needs beside it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from dynarank.checkpoints.storage import read_checkpoint
from dynarank.errors import UserError
from dynarank.training.cut import cut_as_saved
from dynarank.training.history_file import HistoryFile
from dynarank.training.module import FineTuning
from dynarank.training.nonfinite import NonFiniteError
from dynarank.training.optimizer import optimizer_as_set

ROWS = "metrics_csv"
"""A checkpoint's entry with the history so far: metrics.csv, compressed, as bytes in a tensor."""
PARTS = (
    "TaskData",  # Lightning's name for the data's state: its class's
    "callbacks",
    "history",
    "loops",
    "lr_schedulers",
    "optimizer_states",
    "rest",
    "state_dict",
    ROWS,
)
"""What a checkpoint must hold for a run to go on from it."""


ALSO_SAVED = (".mask", ".lora_c", ".log_alpha")
"""Endings of what pruning changes, though it may not be trained: Diff Pruning's gates train until
the freeze, and a checkpoint from before it fits no model without them."""
_FORMER_CUT = "optimizer_names"
"""An entry of earlier versions, which cut their files and not the model."""


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the trained parameters and the masks by name.

    They are all that a checkpoint needs of a model beside its base.
    """
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    saved = {}
    for name, value in module.state_dict().items():
        if name in trained or name.endswith(ALSO_SAVED):
            saved[name] = value
    return saved


def difference(module: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Return the first difference in names and shapes between a state and a module's, in words.

    Args:
        module: whose `trained_state` is compared.
        state: the `trained_state` of another one.
    """
    shapes = {name: list(tensor.shape) for name, tensor in trained_state(module).items()}
    saved = {name: list(tensor.shape) for name, tensor in state.items()}
    differing = []
    for name in sorted({**shapes, **saved}):
        if shapes.get(name) != saved.get(name):
            differing.append(name)
    if not differing:
        return None
    first = differing[0]
    was, is_now = saved.get(first, "not there"), shapes.get(first, "not there")
    return f"{first} was {was}, is {is_now} ({len(differing)} differ)"


class RunContent:
    """What a run's checkpoints hold beside what Lightning gathers.

    The base model is left out. After the freeze the model holds the kept components alone, and so
    do its checkpoints.
    """

    def __init__(self, module: FineTuning) -> None:
        self.module = module

    def complete(self, checkpoint: dict[str, Any]) -> None:
        """Change what Lightning gathered into what is stored."""
        # In place of Lightning's, which holds the frozen base too.
        checkpoint["state_dict"] = trained_state(self.module)
        checkpoint["total_steps"] = self.module.total_steps
        checkpoint["history"] = self.module.history
        checkpoint["collapsed"] = self.module.collapsed
        checkpoint[ROWS] = _pack(_history_file(self.module.trainer))

    def take_back(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Change what is stored into what Lightning restores.

        Lightning loads what it is given, and is silent about what is missing.

        Raises:
            UserError: something is missing, or the weights are of another model.
        """
        # What is missing would be new instead: the moments, the scores, the place in the data.
        missing = [part for part in PARTS if part not in checkpoint]
        allocation = self.module.allocation
        # `state_key` is Lightning's name for a Callback's part of a checkpoint.
        if allocation is not None and allocation.state_key not in checkpoint.get("callbacks", {}):
            missing.append("the allocator's scores")
        if missing:
            raise UserError(
                f"{path}: lacks {missing[0]}, so the run cannot go on from it. Take another "
                "checkpoint"
            )
        if _FORMER_CUT in checkpoint:
            raise UserError(
                f"{path}: an earlier version saved it after the ranks were final, and this one "
                "does not read it. Go on with that version, or from a checkpoint before the freeze"
            )
        self._cut_as(checkpoint)
        # After the cut, which gives the model the shapes of a checkpoint from after the freeze.
        other = difference(self.module, checkpoint["state_dict"])
        if other is not None:
            raise UserError(f"{path}: is of another model: {other}")
        # For its settings alone: Lightning makes the run's own optimizer after this.
        optimizer_as_set(checkpoint, self.module.configure_optimizers())
        self.module.history = checkpoint["history"]
        # Those of version 0.1 lack it.
        self.module.collapsed = checkpoint.get("collapsed")
        history_file = _history_file(self.module.trainer)
        if history_file is not None:
            history_file.restore(_unpack(checkpoint[ROWS]))

    def _cut_as(self, checkpoint: dict[str, Any]) -> None:
        """Cut the model where the checkpoint was saved after the cut, and the model is whole."""
        allocation = self.module.allocation
        if allocation is None:
            return
        saved = checkpoint["callbacks"][allocation.state_key]["allocator"]
        if saved.get("frozen", False):
            cut_as_saved(self.module, checkpoint["state_dict"])

    def load_weights(self, path: Path) -> None:
        """Put a checkpoint's weights into the model, or their average where it holds one."""
        # Not by `take_back`, which would put the history back too.
        checkpoint = read_checkpoint(path)
        self._cut_as(checkpoint)
        assert difference(self.module, checkpoint["state_dict"]) is None
        # Masks, and a c that is fixed, have no average, and come from the state.
        weights = {**checkpoint["state_dict"], **checkpoint.get("average", {})}
        self.module.load_state_dict(weights, strict=False)  # no checkpoint holds the base


def _history_file(trainer: pl.Trainer) -> HistoryFile | None:
    """Return what writes metrics.csv; None for a trainer without it."""
    for logger in trainer.loggers:
        if isinstance(logger, HistoryFile):
            return logger
    return None


def history_rows(trainer: pl.Trainer) -> int:
    """Return the number of rows of metrics.csv, and have all of them written."""
    history_file = _history_file(trainer)
    if history_file is None:
        return 0
    history_file.save()
    return history_file.rows


def _pack(history_file: HistoryFile | None) -> Tensor:
    """Return the history as a tensor of bytes, in a form that `weights_only` loads."""
    text = "" if history_file is None else history_file.text()
    # A bytearray, because torch warns of memory that cannot be written, as bytes are.
    return torch.frombuffer(bytearray(zlib.compress(text.encode())), dtype=torch.uint8)


def _unpack(packed: Tensor) -> str:
    return zlib.decompress(packed.numpy().tobytes()).decode()


def check_finite(trainer: pl.Trainer) -> None:
    """Raise `NonFiniteError` where a trained weight, its average or a moment is not finite.

    All ranks hold the same values, and so take the same decision.
    """
    names: list[str] = []
    flags: list[Tensor] = []
    for name, value in _saved_values(trainer):
        names.append(name)
        flags.append(value.isfinite().all())
    # Stacked, so that the host waits once for the device and not for every tensor.
    if not flags or bool(torch.stack(flags).all()):
        return
    first = next(name for name, flag in zip(names, flags, strict=True) if not bool(flag))
    raise NonFiniteError(
        trainer.global_step, f"{first} holds values that are not finite, and is not saved"
    )


def _saved_values(trainer: pl.Trainer) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the value of all weights, averages and moments that a checkpoint holds."""
    module = trainer.lightning_module
    names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
    for parameter, name in names.items():
        if parameter.requires_grad:
            yield f"parameter {name}", parameter.detach()
    average = getattr(module, "average", None)
    if average is not None:
        for name, averaged in average.average.items():
            yield f"the average of {name}", averaged
    for optimizer in trainer.optimizers:
        for optimized, state in optimizer.state.items():
            for key, value in state.items():
                # A scalar is the optimizer's count of steps.
                if isinstance(value, Tensor) and value.ndim > 0:
                    yield f"{key} of {names.get(optimized, 'a parameter')}", value
