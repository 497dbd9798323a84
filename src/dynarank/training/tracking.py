"""Where a run's history goes: always a metrics.csv, and the tracker that the configuration names."""

from __future__ import annotations

import csv
import netrc
import os
from dataclasses import asdict
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from dynarank.training.config import TrainConfig
from dynarank.training.distributed import is_first


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


def wandb_mode(stated: str) -> str:
    """The mode that needs no prompt: as stated, else WANDB_MODE, else online when a key is at hand, else offline."""
    if stated != "auto":
        return stated
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    return "online" if os.environ.get("WANDB_API_KEY") or _has_login() else "offline"


def run_tags(config: TrainConfig) -> list[str]:
    """Task, method and model, and those that WANDB_TAGS names: a sweep's, and the user's own."""
    named = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",")]
    tags = [config.task.name, config.method.name, config.model.name, *named]
    return list(dict.fromkeys(tag[:64] for tag in tags if tag))  # W&B takes no longer ones


def _has_login() -> bool:
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC") or None).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _wandb(config: TrainConfig, folder: Path) -> WandbLogger:
    import wandb

    name = f"{config.task.name}-{config.method.name}-r{config.budget.target}-{config.model.name}-seed{config.seed}"
    settings = wandb.Settings(mode=wandb_mode(config.logger.mode), console="off", silent=True)
    experiment = wandb.init(
        dir=folder,
        name=name,
        project=config.logger.project,
        tags=run_tags(config),
        config=asdict(config),
        settings=settings,
        reinit="finish_previous",  # a failed run of a sweep leaves its own open
    )
    return WandbLogger(save_dir=folder, experiment=experiment)
