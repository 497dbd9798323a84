"""Where a run's history goes: always a metrics.csv, and the tracker that the settings name."""

from __future__ import annotations

import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from dynarank.config.schema import TrainConfig
from dynarank.run_folder import TRACKER_RUN
from dynarank.training.distributed import is_first
from dynarank.training.history_file import HistoryFile
from dynarank.training.tensorboard_tracker import TensorBoardTracker
from dynarank.training.wandb_mode import wandb_mode, wandb_project
from dynarank.training.wandb_tracker import STEP, WandbTracker

LONGEST_TAG = 64
"""Characters of a tag; W&B takes no longer one."""


def build_loggers(config: TrainConfig, folder: Path, resumed: bool = False) -> list[Logger]:
    """Return the loggers of a run: metrics.csv in its folder, and the tracker that it names.

    Args:
        config: the run's.
        folder: the run's.
        resumed: whether the run goes on from a checkpoint, and in the same curves.
    """
    loggers: list[Logger] = [HistoryFile(folder)]
    # Every rank builds loggers, and W&B would open a run on each.
    if config.logger.tracker == "wandb" and is_first():
        loggers.append(_wandb_tracker(config, folder, resumed=resumed))
    if config.logger.tracker == "tensorboard" and is_first():
        loggers.append(TensorBoardTracker(folder, resolved_settings(config)))
    return loggers


def run_tags() -> list[str]:
    """Return the tags of WANDB_TAGS, which the user and a sweep set."""
    tags = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",")]
    return list(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags if tag))


def resolved_settings(config: TrainConfig) -> dict[str, Any]:
    """Return a run's settings, with the values that stand for null in those that follow others."""
    settings = asdict(config)
    settings["optimizer"]["lr"] = config.lr
    settings["trainer"] |= {"epochs": config.epochs, "batch_size": config.batch_size}
    return settings


def _run_id(folder: Path, resumed: bool) -> str:
    """Return the run's name for W&B, which its folder keeps.

    A resumed run goes on in the same curves by it.
    """
    record = folder / TRACKER_RUN
    if not (resumed and record.is_file()):
        # By `secrets`, because `random` is seeded: all runs of one seed would be one run to W&B.
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(secrets.token_hex(4) + "\n")
    return record.read_text().strip()


def _wandb_tracker(config: TrainConfig, folder: Path, resumed: bool) -> WandbTracker:
    """Return the tracker, which opens W&B's run in the background."""
    name = os.environ.get("WANDB_NAME") or (
        f"{config.task.name}-{config.method.name}-r{config.budget.target}-{config.model.name}"
        f"-seed{config.seed}"
    )
    options: dict[str, Any] = {
        "dir": folder,
        "name": name,
        "resume": "allow",  # a known id goes on, a new one begins
        "project": wandb_project(config.logger.project),
        "group": os.environ.get("WANDB_RUN_GROUP"),  # a sweep's; W&B itself looks once a process
        "tags": run_tags(),
        "config": resolved_settings(config),
        "reinit": "finish_previous",  # a failed run of a sweep leaves its own open
    }

    def open_run(mode: str) -> Any:
        # Imported here, in the tracker's thread, because the import takes its time too.
        import wandb

        settings = wandb.Settings(
            mode=mode,
            silent=True,
            # W&B would otherwise keep the command line, the program, the account's mail address
            # and git's remote, which can hold a password.
            x_disable_meta=True,
            save_code=False,
            disable_git=True,
            console="off",
        )
        run = wandb.init(**options, id=_run_id(folder, resumed), settings=settings)
        run.define_metric(STEP)
        # W&B draws over its own count of calls otherwise.
        run.define_metric("*", step_metric=STEP, step_sync=True)
        return run

    return WandbTracker(open_run, wandb_mode(config.logger.mode))
