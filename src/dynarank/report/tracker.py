"""The report in the tracker, beside its runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dynarank.report.runs import read_runs


def log_report(folders: Sequence[Path], report: Path) -> str:
    """Log the report's table and pictures to W&B as a run of the sweep's group; return its place.

    Project and mode are those of the runs, so that it is offline where they are, and never asks.
    """
    import pandas as pd
    import wandb

    from dynarank.training.wandb_mode import wandb_mode

    runs, _ = read_runs(folders)
    settings = runs[0].settings
    group = os.environ.get("WANDB_RUN_GROUP") or folders[0].resolve().name
    run = wandb.init(
        dir=report,
        project=str(settings.get("logger.project", "dynarank")),
        group=group,
        job_type="report",
        name=f"{group}-report",
        settings=wandb.Settings(
            mode=wandb_mode(str(settings.get("logger.mode", "auto"))), console="off", silent=True
        ),
    )
    pictures = {path.stem: wandb.Image(str(path)) for path in sorted(report.glob("*.png"))}
    table = wandb.Table(dataframe=pd.read_csv(report / "table.csv"))
    run.log({"table": table, **pictures})
    place = str(Path(run.dir).parent) if run.offline else str(run.url)
    run.finish()
    return place
