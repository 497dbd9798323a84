"""What checkpoints need of Lightning that it does not document: each behind one function.

`tests/checkpoints/test_library_internals.py` checks that every name still means what is said here.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


def loop_position(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what the loops know between two batches and leave out of their own state."""
    loop = trainer.fit_loop.epoch_loop
    return {
        "batches_that_stepped": loop._batches_that_stepped,
        "validation_progress": loop.val_loop.batch_progress.state_dict(),
    }


def restore_loop_position(trainer: pl.Trainer, position: dict[str, Any]) -> None:
    """Put the loops back between two batches, where `loop_position` was taken.

    Lightning takes every checkpoint for one that was saved inside a batch, and would count that
    batch, or a validation, again.
    """
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped = position["batches_that_stepped"]
    # At a batch's start, where checkpoints are saved, it is ready and not completed.
    loop.batch_progress.total.ready = loop.batch_progress.total.completed + 1
    loop.val_loop.batch_progress.load_state_dict(position["validation_progress"])
