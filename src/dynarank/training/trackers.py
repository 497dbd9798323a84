"""Where a run's history goes: always a metrics.csv, and the tracker that the configuration names."""

from __future__ import annotations

import csv
import os
import secrets
from dataclasses import asdict
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from dynarank.config.schema import TrainConfig
from dynarank.training.distributed import is_first
from dynarank.training.wandb_mode import wandb_mode


def build_loggers(config: TrainConfig, folder: Path, rows: int = 0) -> list[Logger]:
    """metrics.csv in the run's folder, and W&B unless logger.tracker=none. A resumed run keeps the first `rows` rows."""
    loggers: list[Logger] = [_csv(folder, rows)]
    if config.logger.tracker == "wandb" and is_first():
        loggers.append(_wandb(config, folder, resumed=rows > 0))
    return loggers


def _csv(folder: Path, rows: int) -> CSVLogger:
    """Lightning's removes an earlier file; the rows to be kept are handed to it as if they had just been logged."""
    path = folder / "metrics.csv"
    kept = []
    if rows and path.is_file():
        with path.open(newline="") as file:
            kept = [
                {key: value for key, value in row.items() if value != ""}
                for row in csv.DictReader(file)
            ][:rows]
    logger = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=50)
    if kept:
        logger.experiment.metrics = kept
        logger.save()
    return logger


def run_tags(config: TrainConfig) -> list[str]:
    """Task, method and model, and those that WANDB_TAGS names: a sweep's, and the user's own."""
    named = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",")]
    tags = [config.task.name, config.method.name, config.model.name, *named]
    return list(dict.fromkeys(tag[:64] for tag in tags if tag))  # W&B takes no longer ones


def _run_id(folder: Path, resumed: bool) -> str:
    """The run's name for W&B, kept in its folder, so that a resumed one goes on in the same curves."""
    record = folder / "wandb" / "run_id"
    if resumed and record.is_file():
        return record.read_text().strip()
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(secrets.token_hex(4) + "\n")
    return _run_id(folder, resumed=True)


def _wandb(config: TrainConfig, folder: Path, resumed: bool) -> WandbLogger:
    import wandb

    name = f"{config.task.name}-{config.method.name}-r{config.budget.target}-{config.model.name}-seed{config.seed}"
    # Else W&B keeps the command line, the program, the account's mail address and git's remote, which can hold a password.
    private = {"x_disable_meta": True, "save_code": False, "disable_git": True, "console": "off"}
    settings = wandb.Settings(mode=wandb_mode(config.logger.mode), silent=True, **private)
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
