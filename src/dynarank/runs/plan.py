"""What a run is going to do, told before its first step."""

from __future__ import annotations

import logging
from typing import Any

from dynarank.config.schema import TrainConfig
from dynarank.tasks.base import Task
from dynarank.training.module import FineTuning
from dynarank.training.validation_times import validation_steps

log = logging.getLogger(__name__)


SHOWN = 12
"""Validations of an epoch that are named one by one."""


def log_plan(config: TrainConfig, module: FineTuning, task: Task[Any], batches: int) -> None:
    """Print T, the validations and the schedule before step 0.

    Args:
        config: the run's.
        module: what is trained.
        task: with its rows.
        batches: of an epoch.
    """
    splits = {**task.validation, **task.test}
    rows = ", ".join(f"{len(data):,} {split}" for split, data in splits.items())
    log.info(
        "%s: %s rows to train, %s; T = %d steps (%d epochs, batch %d, accumulation %d), lr %.3g",
        config.task.name,
        f"{len(task.train):,}",
        rows,
        module.total_steps,
        config.epochs,
        config.batch_size,
        config.trainer.accumulate,
        config.lr,
    )
    asked = config.trainer.validations_per_epoch
    if asked > 1:
        steps = validation_steps(batches, asked, config.trainer.accumulate)
        named = [str(step) for step in steps]
        if len(named) > SHOWN:
            named[SHOWN // 2 : -SHOWN // 2] = ["..."]
        log.info("validations: %d an epoch, after its steps %s", len(steps), ", ".join(named))
    if module.allocation is None:
        return
    allocator = module.allocation.allocator
    schedule = allocator.schedule
    log.info(
        "budget: %g components a layer until step %d, then down every %d steps to %g at step %d, "
        "where ranks freeze (%s %s; %d components now)",
        schedule.init,
        schedule.start_step,
        schedule.interval,
        schedule.target,
        schedule.freeze_step,
        f"{allocator.allowance(schedule.total):,}",
        config.budget.unit,
        sum(allocator.sizes),
    )
