"""After which batches of an epoch the validation splits are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from dynarank.rounding import divide_up
from dynarank.training.library_internals import validate_behind


def validation_steps(batches: int, per_epoch: int, accumulate: int) -> list[int]:
    """Return the optimizer steps of an epoch that validations follow, from 1.

    The k-th of n follows step k S / n of an epoch's S, rounded up: the last one ends the epoch.
    With more validations than steps, each step is followed by one.

    Args:
        batches: of an epoch.
        per_epoch: how many validations an epoch is to have.
        accumulate: batches of an optimizer step.
    """
    steps = divide_up(batches, accumulate)  # a last, shorter window is a step too
    ends = {divide_up(number * steps, per_epoch) for number in range(1, per_epoch + 1)}
    return sorted(ends)


def validation_batches(batches: int, per_epoch: int, accumulate: int) -> list[int]:
    """Return the batches of an epoch, from 1, that end the steps of `validation_steps`.

    They end accumulation windows, where the weights are those that a checkpoint holds.
    """
    steps = validation_steps(batches, per_epoch, accumulate)
    return [min(step * accumulate, batches) for step in steps]


def validation_interval(ends: Sequence[int]) -> int | float | None:
    """Return Lightning's `val_check_interval` for these batches; None where there is none.

    1.0 is Lightning's word for the epoch's end alone. It knows even intervals only.
    """
    if len(ends) == 1:
        return 1.0
    interval = ends[0]
    evenly_apart = list(range(interval, ends[-1] + 1, interval))
    return interval if list(ends) == evenly_apart else None


class ValidationTimes(Callback):
    """Let Lightning validate after these batches of each epoch, which are unevenly far apart.

    Args:
        ends: the batches, from 1, in order.
    """

    def __init__(self, ends: Sequence[int]) -> None:
        self.ends = frozenset(ends)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Say whether a validation follows the batch."""
        validate_behind(trainer, batch_idx, batch_idx + 1 in self.ends)
