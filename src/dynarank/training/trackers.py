"""Where a run's history goes: always a metrics.csv, and the tracker that the settings name."""

from __future__ import annotations

import os
import secrets
from dataclasses import asdict
from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger

from dynarank.config.schema import TrainConfig
from dynarank.run_folder import TRACKER_RUN
from dynarank.training.distributed import is_first
from dynarank.training.history_file import HistoryFile
from dynarank.training.wandb_mode import wandb_mode

LONGEST_TAG = 64
"""Characters of a tag; W&B takes no longer one."""


def build_loggers(config: TrainConfig, folder: Path, resumed: bool = False) -> list[Logger]:
    """Return the loggers of a run: metrics.csv in its folder, and W&B unless logger.tracker=none.

    Args:
        config: the run's.
        folder: the run's.
        resumed: whether the run goes on from a checkpoint, and in the same curves.
    """
    loggers: list[Logger] = [HistoryFile(folder)]
    if config.logger.tracker == "wandb" and is_first():
        loggers.append(_wandb_logger(config, folder, resumed))
    return loggers


def run_tags(config: TrainConfig) -> list[str]:
    """Return the task, the method and the model, and the tags of WANDB_TAGS.

    A sweep sets WANDB_TAGS for its runs, and the user may have.
    """
    tags = [config.task.name, config.method.name, config.model.name]
    for tag in os.environ.get("WANDB_TAGS", "").split(","):
        tags.append(tag.strip())
    return list(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags if tag))


def _run_id(folder: Path, resumed: bool) -> str:
    """Return the run's name for W&B, which its folder keeps.

    A resumed run goes on in the same curves by it.
    """
    record = folder / TRACKER_RUN
    if not (resumed and record.is_file()):
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(secrets.token_hex(4) + "\n")
    return record.read_text().strip()


def _wandb_logger(config: TrainConfig, folder: Path, resumed: bool) -> WandbLogger:
    import wandb

    name = (
        f"{config.task.name}-{config.method.name}-r{config.budget.target}-{config.model.name}"
        f"-seed{config.seed}"
    )
    settings = wandb.Settings(
        mode=wandb_mode(config.logger.mode),
        silent=True,
        # W&B would otherwise keep the command line, the program, the account's mail address and
        # git's remote, which can hold a password.
        x_disable_meta=True,
        save_code=False,
        disable_git=True,
        console="off",
    )
    experiment = wandb.init(
        dir=folder,
        name=name,
        id=_run_id(folder, resumed),
        resume="allow",
        project=config.logger.project,
        group=os.environ.get("WANDB_RUN_GROUP"),  # a sweep's; W&B itself looks once a process
        tags=run_tags(config),
        config=asdict(config),
        settings=settings,
        reinit="finish_previous",  # a failed run of a sweep leaves its own open
    )
    return WandbLogger(save_dir=folder, experiment=experiment)
