"""Lightning's trainer, set up for a run, and its fit."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback

from dynarank.checkpoints.callback import Checkpoints
from dynarank.checkpoints.content import RunContent
from dynarank.checkpoints.storage import DurableIO
from dynarank.config.schema import TrainConfig
from dynarank.errors import Interrupted
from dynarank.runs.freed_memory import keep_freed_memory
from dynarank.runs.library_internals import end_other_ranks
from dynarank.runs.prepare import Prepared
from dynarank.training.distributed import build_strategy
from dynarank.training.own_callbacks import build_callbacks
from dynarank.training.progress_bar import OneLineBar
from dynarank.training.trackers import build_loggers
from dynarank.training.validation_times import (
    ValidationTimes,
    validation_batches,
    validation_interval,
)


def quiet_libraries() -> None:
    """Keep advice that does not fit off the user's screen.

    So are other libraries' warnings about one another's deprecated parts.
    """
    for advice in (
        ".*does not have many workers.*",  # batches are collated in a millisecond
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*(Checkpoint|Experiment logs) directory .* exists and is not empty.*",
        ".*will save all targets and predictions.*",
        ".*LeafSpec.*is deprecated.*",
        ".*recommended to use .*sync_dist=True.*",  # scores come from all ranks' predictions
        ".*resuming from a checkpoint that ended before the epoch ended.*",  # TaskData knows where
    ):
        warnings.filterwarnings("ignore", advice)
    # fontTools tells of every table of a font that goes into a PDF.
    for name in ("lightning.pytorch", "lightning.fabric", "fontTools"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Where it is installed, PEFT imports it, and it tells of a kernel that nobody asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def build_trainer(
    config: TrainConfig, folder: Path, prepared: Prepared, checkpoints: Checkpoints
) -> pl.Trainer:
    """Return Lightning's trainer for a run."""
    # First: it restores the generators before a callback of the user's may draw from them.
    callbacks: list[Callback] = [checkpoints, *build_callbacks(config.trainer.callbacks)]
    ends = validation_batches(
        prepared.data.batches_per_epoch,
        config.trainer.validations_per_epoch,
        config.trainer.accumulate,
    )
    interval = validation_interval(ends)
    if interval is None:
        callbacks.append(ValidationTimes(ends))
    on_terminal = _on_terminal()
    if on_terminal:
        callbacks.append(OneLineBar())
    return pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.nodes,
        strategy=build_strategy(config.trainer),
        precision=config.trainer.precision,  # type: ignore[arg-type]
        max_epochs=config.epochs,
        max_steps=config.trainer.max_steps or -1,  # -1: Lightning's word for no bound
        max_time=config.trainer.max_time,
        accumulate_grad_batches=config.trainer.accumulate,
        gradient_clip_val=config.trainer.clip or None,  # a bound of 0 would make all gradients 0
        val_check_interval=interval or 1.0,  # without one, `ValidationTimes` decides
        log_every_n_steps=config.trainer.log_every,
        num_sanity_val_steps=0,  # its scores would be taken for a validation's
        use_distributed_sampler=False,  # the samplers share rows out by themselves
        enable_model_summary=False,
        enable_checkpointing=False,  # `Checkpoints` saves, and knows the budget
        enable_progress_bar=on_terminal,  # false, so that Lightning shows none of its own
        logger=build_loggers(config, folder, resumed=prepared.resumption is not None),
        callbacks=callbacks,
        plugins=[DurableIO(RunContent(prepared.module)), *_no_requeueing()],
        default_root_dir=folder,
    )


def _no_requeueing() -> list[SLURMEnvironment]:
    """Keep Lightning, under Slurm, from saving and requeueing inside a signal handler.

    `Checkpoints` saves, and the launcher requeues.
    """
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def _on_terminal() -> bool:
    from rich.console import Console

    return Console().is_terminal


def fit(trainer: pl.Trainer, prepared: Prepared) -> None:
    """Train, from the checkpoint on where there is one. Raises `Interrupted` at a signal."""
    path = str(prepared.resumption.path) if prepared.resumption else None
    if trainer.strategy.root_device.type == "cpu":
        # On accelerators, torch keeps freed memory by itself.
        keep_freed_memory()
    try:
        trainer.fit(prepared.module, prepared.data, ckpt_path=path, weights_only=True)
    except Interrupted:
        # Lightning does it after a KeyboardInterrupt alone.
        end_other_ranks(trainer)
        raise
