"""Sweeps: every point in a fresh process, what is finished kept, what failed recorded, the rest carried on.

A sweep's folder holds `sweep.json`, the points and their overrides, and a run's folder for each point; there
`running.json` names the process at work, and `error.txt` says why one failed.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynarank.errors import UserError
from dynarank.sweeps.executors import Executor
from dynarank.sweeps.point import POINT, START_OVER, Job, Point

log = logging.getLogger(__name__)

OWN = (
    "hydra.sweep",
    "hydra.launcher",
    "hydra/launcher",
    "hydra.sweeper",
    "hydra/sweeper",
    "hydra.mode",
    "hydra.run.dir",
)
"""Hydra's settings that are the sweep's, not a point's."""


def read_sweep(folder: Path) -> list[Point]:
    """The points of a sweep's folder. Raises `UserError` where it is none."""
    if not (folder / "sweep.json").is_file():
        raise UserError(f"{folder}: is no sweep's folder (no sweep.json)")
    points = json.loads((folder / "sweep.json").read_text())
    return [Point(one["number"], folder / one["folder"], one["overrides"]) for one in points]


def launch(
    context: Any,
    config: Any,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    executor: Executor,
    resume: bool = False,
) -> list[Any]:
    """Run all points; returns Hydra's job returns, of which a failed one raises when it is looked at.

    With `resume`, as with sweep.resume=true, those that are finished are left out, and those that were begun go on; a
    sampling sweeper sets it.
    """
    if POINT in os.environ:
        raise UserError(
            "a point of a sweep would start a sweep of its own: take -m or hydra.mode out of its overrides"
        )
    executor.check()
    resume, sampled = resume or bool(config.sweep.resume), resume
    composed = [
        _compose(context, config, overrides, first + index)
        for index, overrides in enumerate(job_overrides)
    ]
    check_sources(composed)
    points = [
        _point(one, overrides) for one, overrides in zip(composed, job_overrides, strict=True)
    ]
    sweep = Path(str(config.hydra.sweep.dir))
    todo = [point for point in points if not (resume and point.finished)]
    refuse_running(todo)
    _record(sweep, points)
    if not sampled:
        log.info(
            "sweep of %d runs in %s%s",
            len(points),
            sweep,
            "" if todo == points else f", {len(todo)} to go",
        )
    try:
        jobs = _jobs(todo, points, config, sweep)
        executor.run([job.going_on() if resume and job.point.begun else job for job in jobs], sweep)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Go on: the same command with sweep.resume=true hydra.sweep.dir={sweep}"
        ) from None
    return [_job_return(point, sweep) for point in points]


def refuse_running(points: Sequence[Point]) -> None:
    """Raise `UserError` where a run is at work still, started by an earlier command: two would mix in one folder."""
    running = [point for point in points if point.status() == "running"]
    if running:
        raise UserError(
            f"{len(running)} of these runs are at work still, the first being #{running[0].number} "
            f"({running[0].folder / 'running.json'} says where; remove it if that is not so). Wait for them, or end them, "
            "and give the same command again"
        )


def _jobs(todo: Sequence[Point], points: Sequence[Point], config: Any, sweep: Path) -> list[Job]:
    """The plain command of each point that is to be run."""
    common = [one for one in config.hydra.overrides.hydra if not one.lstrip("+~").startswith(OWN)]
    shared = (
        set.intersection(*(set(point.overrides) for point in points)) if len(points) > 1 else set()
    )
    environment = tracker_environment(config, sweep, points[0])
    script = str(Path(sys.argv[0]).resolve())
    jobs = []
    for point in todo:
        placed = replace(point, folder=point.folder.resolve())
        path = str(placed.folder).replace("\\", "\\\\").replace("'", "\\'")
        # An experiment may say hydra.mode=MULTIRUN, which must not reach its points: each would sweep again.
        command = [
            sys.executable,
            script,
            *point.overrides,
            *common,
            START_OVER,
            "hydra.mode=RUN",
            f"hydra.run.dir='{path}'",
        ]
        shown = " ".join(one for one in point.overrides if one not in shared) or "(defaults)"
        jobs.append(Job(placed, command, Path.cwd(), environment, shown))
    return jobs


def tracker_environment(config: Any, sweep: Path, point: Point) -> dict[str, str]:
    """W&B's own variables, by which the runs of a sweep share a group and tags: its experiment, and what varies."""
    fixed = set(config.hydra.overrides.task)
    axes = [one.partition("=")[0].lstrip("+") for one in point.overrides if one not in fixed]
    given = [os.environ["WANDB_TAGS"]] if os.environ.get("WANDB_TAGS") else []
    experiment = config.hydra.runtime.choices.get("experiment")
    tags = [
        *given,
        *([str(experiment)] if experiment else []),
        *(axis for axis in axes if axis != "seed"),
    ]
    group = os.environ.get("WANDB_RUN_GROUP") or sweep.resolve().name
    return {"WANDB_RUN_GROUP": group, "WANDB_TAGS": ",".join(tags)}


def _compose(context: Any, config: Any, overrides: Sequence[str], number: int) -> Any:
    from omegaconf import open_dict

    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    return composed


def check_sources(composed: Sequence[Any]) -> None:
    """Raise `UserError` where a point's model or data is nowhere: once, and not once a process."""
    from dynarank.runs.preflight import locate_model

    checked = set()
    for one in composed:
        parts = (str(one.model.path), str(one.model.revision), str(one.task), str(one.hub.root))
        if parts not in checked:
            checked.add(parts)
            locate_model(one)


def _point(composed: Any, overrides: Sequence[str]) -> Point:
    sweep, subdir = Path(str(composed.hydra.sweep.dir)), str(composed.hydra.sweep.subdir)
    folder = sweep / subdir
    if not folder.resolve().is_relative_to(sweep.resolve()):
        raise UserError(
            f"hydra.sweep.subdir = {subdir}: leaves the sweep's folder, {sweep}. Name one inside it"
        )
    return Point(int(composed.hydra.job.num), folder, list(overrides))


def _record(sweep: Path, points: Sequence[Point]) -> None:
    """Write sweep.json; points of earlier batches of a sampling sweeper stay."""
    sweep.mkdir(parents=True, exist_ok=True)
    known = {
        point.number: point
        for point in (read_sweep(sweep) if (sweep / "sweep.json").is_file() else [])
    }
    known |= {point.number: point for point in points}
    content = [
        {
            "number": number,
            "folder": str(point.folder.relative_to(sweep)),
            "overrides": point.overrides,
        }
        for number, point in sorted(known.items())
    ]
    temporary = sweep / "sweep.json.tmp"
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(sweep / "sweep.json")


def _job_return(point: Point, sweep: Path) -> Any:
    from hydra.core.utils import JobReturn, JobStatus

    found = JobReturn(overrides=point.overrides)
    if point.finished:
        found.status, found.return_value = JobStatus.COMPLETED, point.score
        return found
    states = [one.status() for one in read_sweep(sweep)]
    found.status = JobStatus.FAILED
    found.return_value = UserError(
        f"{states.count('failed')} of {len(states)} runs failed, the first being #{point.number}: {point.failure()}\n"
        f"  It says more in {point.folder / 'output.txt'}. The others are finished; once it is mended:\n"
        f"  the same command with sweep.resume=true hydra.sweep.dir={sweep}"
    )
    return found
