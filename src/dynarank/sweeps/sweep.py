"""Sweeps: every point in a fresh process, what is finished kept, what failed recorded.

A sweep's folder holds `sweep.json`, the points and their overrides, and a run's folder for each
point. There `running.json` names the process at work, and `error.txt` tells why a run failed.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynarank.config.command_line import command_to_start, program_to_print, quote
from dynarank.errors import UserError, kind_and_first_line
from dynarank.run_folder import is_finished
from dynarank.sweeps.executors import Executor
from dynarank.sweeps.naming import refuse_shared, resume_hint, tracker_environment, varying, without
from dynarank.sweeps.point import POINT, START_OVER, Job, Point, sigterm_forwarded
from dynarank.sweeps.point_checks import check_points, warn_of_unused
from dynarank.sweeps.progress import Progress

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
    """Return the points of a sweep's folder. Raises `UserError` where it is none."""
    record = folder / "sweep.json"
    if not record.is_file():
        raise UserError(f"{folder}: is no sweep's folder (no sweep.json)")
    points = []
    try:
        for entry in json.loads(record.read_text()):
            points.append(Point(entry["number"], folder / entry["folder"], entry["overrides"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{record}: is damaged ({kind_and_first_line(error)}). Move it away: the runs' own "
            "folders tell what is finished"
        ) from None
    return points


def launch(
    context: Any,
    config: Any,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    executor: Executor,
    resume: bool = False,
) -> list[Any]:
    """Run all points of a sweep, or of a sampling sweeper's batch.

    Args:
        context: Hydra's, which composes configurations.
        config: Hydra's composed configuration of the sweep.
        job_overrides: the overrides of each point.
        first: the first point's number.
        executor: where the points run.
        resume: leave out what is finished and go on with what was begun, as sweep.resume=true
            does. A sampling sweeper sets it.

    Returns:
        Hydra's job returns. One of a failed run raises its error when its value is looked at.

    Raises:
        UserError: nothing can run, runs of an earlier command are at work still, or without
            `resume` some are finished.
        KeyboardInterrupt: with the way to go on, after Ctrl-C or SIGTERM.
    """
    if POINT in os.environ:
        raise UserError(
            "a point of a sweep would start a sweep of its own: "
            "take -m or hydra.mode out of its overrides"
        )
    # First, because it begins the imports, which go on while the points are composed.
    executor.check()
    sampled = resume  # a sampling sweeper tells of its progress itself
    points = _compose_points(context, config, job_overrides, first, sampled)
    resume = resume or bool(config.sweep.resume)
    unfinished = [point for point in points if not (resume and point.finished)]
    refuse_running(unfinished)
    sweep = Path(str(config.hydra.sweep.dir))
    refuse_finished([] if resume else points, sweep)
    refuse_others(unfinished, sweep)
    _record_points(sweep, points)
    if not sampled:
        to_go = "" if unfinished == points else f", {len(unfinished)} to go"
        log.info("sweep of %d runs in %s%s", len(points), sweep, to_go)
    jobs = _jobs(unfinished, points, config, sweep)
    if resume:
        jobs = [job.resumed() if job.point.begun else job for job in jobs]
    progress = Progress(points, unfinished)
    try:
        with sigterm_forwarded():
            executor.run(jobs, sweep, progress)
    except KeyboardInterrupt as error:
        # Of the same type, because SweepTerminated has an exit code of its own.
        raise type(error)(f"Go on: {resume_hint(sweep)}") from None
    if not sampled:
        log.info("%s", progress.table())
        log.info("compare them: %s report %s", program_to_print(), shlex.quote(str(sweep)))
    return [_job_return(point, sweep) for point in points]


def _compose_points(
    context: Any,
    config: Any,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    sampled: bool,
) -> list[Point]:
    """Return the points, each of whose configurations is valid and finds its model and data."""
    composed = []
    for index, overrides in enumerate(job_overrides):
        one = _compose(context, config, overrides, first + index)
        _name_by(one, varying(overrides, job_overrides, config))
        composed.append(one)
    configs = check_points(composed, sampled)
    if first == 0:  # once, and not for each of a search's batches
        warn_of_unused(configs, config.hydra.overrides.task)
    points = [_point(one, given) for one, given in zip(composed, job_overrides, strict=True)]
    refuse_shared([(point.number, point.folder) for point in points])
    return _in_recorded_folders(points, Path(str(config.hydra.sweep.dir)))


def _name_by(composed: Any, point_varying: Sequence[str]) -> None:
    """Have a point's folder be named by what varies, and not by all that was given."""
    from omegaconf import open_dict

    job = composed.hydra.job
    excluded = list(job.config.override_dirname.exclude_keys)
    with open_dict(composed):
        job.override_dirname = ",".join(without(point_varying, excluded))


def _in_recorded_folders(points: Sequence[Point], sweep: Path) -> list[Point]:
    """Return the points, in the folders that an earlier command gave to the same ones."""
    if not (sweep / "sweep.json").is_file():
        return list(points)
    # A folder is named by what varies, and other points may have other settings vary.
    recorded = {point.number: point for point in read_sweep(sweep)}
    placed = []
    for point in points:
        earlier = recorded.get(point.number)
        if earlier is not None and earlier.overrides == point.overrides:
            placed.append(earlier)
        else:
            placed.append(point)
    return placed


def refuse_finished(points: Sequence[Point], sweep: Path) -> None:
    """Raise `UserError` where a point's folder holds a finished run, which would be replaced."""
    finished = [point for point in points if point.finished]
    if finished:
        raise UserError(
            f"hydra.sweep.dir = {sweep}: {len(finished)} of these {len(points)} runs are finished "
            f"there already, the first in {finished[0].folder}. Keep them and run the others with "
            "sweep.resume=true, or name another folder"
        )


def refuse_others(points: Sequence[Point], sweep: Path) -> None:
    """Raise `UserError` where a point's folder holds a finished run of other settings."""
    others = [point for point in points if is_finished(point.folder) and not point.finished]
    if others:
        raise UserError(
            f"hydra.sweep.dir = {sweep}: {len(others)} of these runs would replace finished ones "
            f"of other settings, the first in {others[0].folder}. Name another folder, or remove "
            "what is there"
        )


def refuse_running(points: Sequence[Point]) -> None:
    """Refuse to start a run again that is at work still: two would mix in one folder.

    Raises:
        UserError: a run that an earlier command started is alive.
    """
    running = [point for point in points if point.status() == "running"]
    if running:
        first = running[0]
        raise UserError(
            f"{len(running)} of these runs are at work still, the first being #{first.number} "
            f"({first.folder / 'running.json'} says where; remove it if that is not so). "
            "Wait for them, or end them, and give the same command again"
        )


def _jobs(
    unfinished: Sequence[Point], points: Sequence[Point], config: Any, sweep: Path
) -> list[Job]:
    """Return the plain command of each point that is to be run."""
    hydra_overrides = []
    for override in config.hydra.overrides.hydra:
        if not override.lstrip("+~").startswith(OWN):
            hydra_overrides.append(override)
    group = sweep.resolve().name
    experiment = config.hydra.runtime.choices.get("experiment")
    all_overrides = [point.overrides for point in points]
    jobs = []
    for point in unfinished:
        differing = varying(point.overrides, all_overrides, config)
        environment = tracker_environment(group, experiment, differing)
        # In full, because the process that fills it may be on another machine, in another folder.
        placed = replace(point, folder=point.folder.resolve())
        command = [
            *command_to_start(),
            *point.overrides,
            *hydra_overrides,
            # Either this or `resumed`: with neither, a folder with an unfinished run is refused.
            START_OVER,
            # An experiment may say hydra.mode=MULTIRUN, and each of its points would sweep again.
            "hydra.mode=RUN",
            f"hydra.run.dir={quote(placed.folder)}",
        ]
        jobs.append(Job(placed, command, directory=Path.cwd(), environment=environment))
    return jobs


def _compose(context: Any, config: Any, overrides: Sequence[str], number: int) -> Any:
    """Return Hydra's composed configuration of a point."""
    from omegaconf import open_dict

    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number  # as Hydra's own launchers do
    return composed


def _point(composed: Any, overrides: Sequence[str]) -> Point:
    """Return the point of a composed configuration."""
    sweep, subdir = Path(str(composed.hydra.sweep.dir)), str(composed.hydra.sweep.subdir)
    folder = sweep / subdir
    if not folder.resolve().is_relative_to(sweep.resolve()):
        raise UserError(
            f"hydra.sweep.subdir = {subdir}: leaves the sweep's folder, {sweep}. Name one inside it"
        )
    return Point(int(composed.hydra.job.num), folder, list(overrides))


def _record_points(sweep: Path, points: Sequence[Point]) -> None:
    """Write sweep.json; points of a sampling sweeper's earlier batches stay in it."""
    sweep.mkdir(parents=True, exist_ok=True)
    recorded = read_sweep(sweep) if (sweep / "sweep.json").is_file() else []
    by_number = {point.number: point for point in [*recorded, *points]}
    content = []
    for number, point in sorted(by_number.items()):
        folder = str(point.folder.relative_to(sweep))
        content.append({"number": number, "folder": folder, "overrides": point.overrides})
    temporary = sweep / "sweep.json.tmp"
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(sweep / "sweep.json")  # `--status` may read it meanwhile


def _job_return(point: Point, sweep: Path) -> Any:
    """Return what Hydra's sweepers look at: the score, or the error that a failed run raises."""
    from hydra.core.utils import JobReturn, JobStatus

    result = JobReturn(overrides=point.overrides)
    if point.finished:
        result.status, result.return_value = JobStatus.COMPLETED, point.score
        return result
    states = [recorded.status() for recorded in read_sweep(sweep)]
    result.status = JobStatus.FAILED
    result.return_value = UserError(
        f"{states.count('failed')} of {len(states)} runs failed, "
        f"the first being #{point.number}: {point.failure()}\n"
        f"  {point.folder / 'output.txt'} tells more. The others are finished. "
        "Once it is mended:\n"
        f"  {resume_hint(sweep)}"
    )
    return result
