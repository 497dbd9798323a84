"""Where a run's history goes: always a metrics.csv, and the tracker that the configuration names."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from dynarank.training.config import TrainConfig
from dynarank.training.distributed import is_first
from dynarank.training.wandb_mode import wandb_mode


def build_loggers(config: TrainConfig, folder: Path, rows: int = 0) -> list[Logger]:
    """metrics.csv in the run's folder, and W&B unless logger.tracker=none. A resumed run keeps the first `rows` rows."""
    loggers: list[Logger] = [_csv(folder, rows)]
    if config.logger.tracker == "wandb" and is_first():
        loggers.append(_wandb(config, folder))
    return loggers


def _csv(folder: Path, rows: int) -> CSVLogger:
    """Lightning's removes an earlier file; the rows to be kept are handed to it as if they had just been logged."""
    path = folder / "metrics.csv"
    kept = []
    if rows and path.is_file():
        with path.open(newline="") as file:
            kept = [{key: value for key, value in row.items() if value != ""} for row in csv.DictReader(file)][:rows]
    logger = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=50)
    if kept:
        logger.experiment.metrics = kept
        logger.save()
    return logger


def _wandb(config: TrainConfig, folder: Path) -> WandbLogger:
    import wandb

    name = f"{config.task.name}-{config.method.name}-r{config.budget.target}-{config.model.name}-seed{config.seed}"
    # Else W&B keeps the command line, the program, the account's mail address and git's remote, which can hold a password.
    private = {"x_disable_meta": True, "save_code": False, "disable_git": True, "console": "off"}
    settings = wandb.Settings(mode=wandb_mode(config.logger.mode), silent=True, **private)
    experiment = wandb.init(
        dir=folder,
        name=name,
        project=config.logger.project,
        tags=[tag[:64] for tag in (config.task.name, config.method.name, config.model.name)],  # W&B takes no longer ones
        config=asdict(config),
        settings=settings,
        reinit="finish_previous",  # a failed run of a sweep leaves its own open
    )
    return WandbLogger(save_dir=folder, experiment=experiment)
