"""Where a run's history goes: always a metrics.csv, and the tracker that the configuration names."""

from __future__ import annotations

import netrc
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dynarank.training.config import TrainConfig

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger, WandbLogger


def build_loggers(config: TrainConfig, folder: Path) -> list[Logger]:
    """metrics.csv in the run's folder, and W&B unless logger.tracker=none."""
    from lightning.pytorch.loggers import CSVLogger

    loggers: list[Logger] = [CSVLogger(folder, name="", version="", flush_logs_every_n_steps=50)]
    if config.logger.tracker == "wandb":
        loggers.append(_wandb(config, folder))
    return loggers


def wandb_mode(stated: str) -> str:
    """The mode that needs no prompt: as stated, else WANDB_MODE, else online when a key is at hand, else offline."""
    return mode_and_reason(stated)[0]


def mode_and_reason(stated: str) -> tuple[str, str]:
    """W&B's mode, and what decided it."""
    if stated != "auto":
        return stated, f"logger.mode={stated}"
    if mode := os.environ.get("WANDB_MODE"):
        return mode, "WANDB_MODE"
    if os.environ.get("WANDB_API_KEY"):
        return "online", "WANDB_API_KEY is set"
    return ("online", "logged in") if _has_login() else ("offline", "not logged in")


def _has_login() -> bool:
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC") or None).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _wandb(config: TrainConfig, folder: Path) -> WandbLogger:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

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
