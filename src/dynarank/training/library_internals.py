"""What training needs of other libraries that they do not document: each behind one function.

`tests/training/test_library_internals.py` checks that every name still means what is said here.
"""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
from torch import nn


def is_log_step(trainer: pl.Trainer) -> bool:
    """Return whether Lightning hands what is logged in this batch on to the loggers.

    It does so every `log_every_n_steps` optimizer steps, and when the training is about to stop.
    """
    return bool(trainer._logger_connector.should_update_logs)


def has_loss_scaler(module: pl.LightningModule) -> bool:
    """Return whether the module's trainer scales the loss (16-mixed); no trainer yet does not."""
    try:
        plugin = module.trainer.precision_plugin
    except RuntimeError:  # Lightning's answer before a trainer has the module
        return False
    return getattr(plugin, "scaler", None) is not None


def uncount_step(trainer: pl.Trainer) -> None:
    """Take back the optimizer step that Lightning has just counted into `global_step`.

    Lightning counts a step of the optimizer also where a loss scaler skipped it.
    """
    optimization = trainer.fit_loop.epoch_loop.automatic_optimization
    step = optimization.optim_progress.optimizer.step
    # `global_step` is total.completed. Lightning counts the others beside it, so all go back.
    for progress in (step.total, step.current):
        progress.ready -= 1
        progress.completed -= 1


def ends_last_epoch(trainer: pl.Trainer) -> bool:
    """Return whether the present batch is the last one of the last epoch.

    A run of few steps, or of little time, may end before.
    """
    return bool(trainer.is_last_batch) and trainer.current_epoch + 1 == trainer.max_epochs


def validate_behind(trainer: pl.Trainer, batch: int, due: bool) -> None:
    """Let Lightning validate after a batch of the epoch, counted from 0, or not.

    It validates where the batches so far are a multiple of `val_check_batch`, which it derives from
    `val_check_interval` at the training's start, and looks at again after each batch.
    """
    done = batch + 1
    # `done` is no multiple of a larger number, so nothing is due.
    trainer.val_check_batch = done if due else done + 1


def sharding_blocks(model: nn.Module) -> Sequence[str]:
    """Return the class names of the blocks that transformers keeps whole on one device."""
    return getattr(model, "_no_split_modules", None) or ()


def compile_for_any_length() -> None:
    """Keep torch.compile from taking two sizes for one because they are equal in the first batch.

    A first batch that is as long as it has rows would otherwise be taken for square for good.
    """
    from torch.fx.experimental import _config

    _config.use_duck_shape = False


def window_scale(trainer: pl.Trainer, batch_idx: int) -> float:
    """Return what makes the loss of an accumulation window the mean of its batches.

    Lightning divides each batch's loss by the length of a full window. The last window of an
    epoch may be shorter.
    """
    full = trainer.accumulate_grad_batches
    batches = int(trainer.num_training_batches)
    rest = batches % full
    # With rest = 0 no batch comes so late, and nothing is divided by it.
    return full / rest if batch_idx >= batches - rest else 1.0
