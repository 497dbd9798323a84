"""The report in the tracker, beside its runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from dynarank.errors import kind_and_first_line
from dynarank.report.runs import read_runs

log = logging.getLogger(__name__)


def log_report(folders: Sequence[Path], report: Path) -> str | None:
    """Log the report's table and pictures to W&B as a run of the sweep's group; return its place.

    Project and mode are those of the runs, so that it is offline where they are, and never asks.
    Trouble with W&B is said, and costs nothing else: the report is on the disk by then.
    """
    try:
        return _log_report(folders, report)
    except Exception as error:  # W&B's own kinds, and whatever its service dies of
        log.warning("the report is not in W&B: %s", kind_and_first_line(error))
        return None


def _log_report(folders: Sequence[Path], report: Path) -> str:
    import pandas as pd
    import wandb

    from dynarank.training.wandb_mode import DEFAULT_PROJECT, wandb_mode, wandb_project

    runs, _ = read_runs(folders)
    settings = runs[0].settings
    group = os.environ.get("WANDB_RUN_GROUP") or folders[0].resolve().name
    project = str(settings.get("logger.project", DEFAULT_PROJECT))
    mode = wandb_mode(str(settings.get("logger.mode", "auto")))
    run = wandb.init(
        dir=report,
        project=wandb_project(project),
        group=group,
        job_type="report",
        name=f"{group}-report",
        settings=wandb.Settings(mode=mode, console="off", silent=True),
    )
    pictures = {path.stem: wandb.Image(str(path)) for path in sorted(report.glob("*.png"))}
    table = wandb.Table(dataframe=pd.read_csv(report / "table.csv"))
    run.log({"table": table, **pictures})
    # run.dir is the folder files/ inside the run's.
    place = str(Path(run.dir).parent) if run.offline else str(run.url)
    run.finish()
    return place
