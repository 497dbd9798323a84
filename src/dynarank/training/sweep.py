"""Sweeps: every point in a fresh process, what is finished kept, what failed recorded, the rest carried on.

A sweep's folder holds `sweep.json`, the points and their overrides, and a run's folder for each point; there
`running.json` names the process at work, and `error.txt` says why one failed.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynarank.errors import UserError

log = logging.getLogger(__name__)

OWN = ("hydra.sweep", "hydra.launcher", "hydra/launcher", "hydra.sweeper", "hydra/sweeper", "hydra.mode", "hydra.run.dir")
"""Hydra's settings that are the sweep's, not a point's."""
ERROR_LINES = 40
POINT = "DYNARANK_SWEEP_POINT"
"""Set in the processes of a sweep."""


@dataclass(frozen=True)
class Point:
    """A run of a sweep."""

    number: int
    folder: Path
    overrides: list[str]

    @property
    def finished(self) -> bool:
        """Whether its folder holds a finished run of these very overrides."""
        record = self.folder / ".hydra" / "overrides.yaml"
        if not ((self.folder / "metrics.json").is_file() and record.is_file()):
            return False
        from omegaconf import OmegaConf

        theirs = [str(one) for one in OmegaConf.load(record)]
        return _essential(theirs) == _essential(self.overrides)

    @property
    def score(self) -> float:
        """The selecting metric. Of a finished run."""
        results = json.loads((self.folder / "metrics.json").read_text())
        value = results["metrics"][results["selected"]["metric"]]
        return float("nan") if value is None else float(value)

    def status(self) -> str:
        """done, running, failed or missing."""
        if self.finished:
            return "done"
        if _alive(self.folder / "running.json"):
            return "running"
        return "failed" if (self.folder / "error.txt").is_file() else "missing"


def _essential(overrides: Sequence[str]) -> list[str]:
    return sorted(one for one in overrides if not one.lstrip("+").startswith("sweep."))


def _alive(record: Path) -> bool:
    try:
        os.kill(int(json.loads(record.read_text())["pid"]), 0)
    except (OSError, ValueError, KeyError):
        return False
    return True


def read_sweep(folder: Path) -> list[Point]:
    """The points of a sweep's folder. Raises `UserError` where it is none."""
    if not (folder / "sweep.json").is_file():
        raise UserError(f"{folder}: is no sweep's folder (no sweep.json)")
    points = json.loads((folder / "sweep.json").read_text())
    return [Point(one["number"], folder / one["folder"], one["overrides"]) for one in points]


def launch(
    context: Any, config: Any, job_overrides: Sequence[Sequence[str]], first: int, n_jobs: int, devices: Sequence[int]
) -> list[Any]:
    """Run all points; returns Hydra's job returns, of which a failed one raises when it is looked at."""
    if POINT in os.environ:
        raise UserError("a point of a sweep would start a sweep of its own: take -m or hydra.mode out of its overrides")
    if n_jobs < 1:
        raise UserError(f"hydra.launcher.n_jobs = {n_jobs}: at least 1")
    composed = [_compose(context, config, overrides, first + index) for index, overrides in enumerate(job_overrides)]
    check_sources(composed)
    points = [_point(one, overrides) for one, overrides in zip(composed, job_overrides, strict=True)]
    sweep = Path(str(config.hydra.sweep.dir))
    _record(sweep, points)
    todo = [point for point in points if not (config.sweep.resume and point.finished)]
    log.info("sweep of %d runs in %s%s", len(points), sweep, "" if len(todo) == len(points) else f", {len(todo)} to go")
    free: queue.Queue[int] = queue.Queue()
    for device in devices:
        free.put(device)
    common = [one for one in config.hydra.overrides.hydra if not one.lstrip("+~").startswith(OWN)]
    shared = set.intersection(*(set(point.overrides) for point in points)) if len(points) > 1 else set()

    def run(point: Point) -> None:
        shown = " ".join(one for one in point.overrides if one not in shared) or "(defaults)"
        log.info("#%d of %d starts: %s", point.number, len(points), shown)
        _run(point, common, n_jobs, free if devices else None)

    with ThreadPoolExecutor(n_jobs) as pool:
        list(pool.map(run, todo))  # after Ctrl-C, map cancels what has not started; those at work have had it too, and end
    return [_job_return(point, sweep) for point in points]


def _compose(context: Any, config: Any, overrides: Sequence[str], number: int) -> Any:
    from omegaconf import open_dict

    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    return composed


def check_sources(composed: Sequence[Any]) -> None:
    """Raise `UserError` where a point's model or data is nowhere: once, and not once a process."""
    from dynarank.training.preflight import locate_model

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
        raise UserError(f"hydra.sweep.subdir = {subdir}: leaves the sweep's folder, {sweep}. Name one inside it")
    return Point(int(composed.hydra.job.num), folder, list(overrides))


def _record(sweep: Path, points: Sequence[Point]) -> None:
    """Write sweep.json; points of earlier batches of a sampling sweeper stay."""
    sweep.mkdir(parents=True, exist_ok=True)
    known = {point.number: point for point in (read_sweep(sweep) if (sweep / "sweep.json").is_file() else [])}
    known |= {point.number: point for point in points}
    content = [
        {"number": number, "folder": str(point.folder.relative_to(sweep)), "overrides": point.overrides}
        for number, point in sorted(known.items())
    ]
    temporary = sweep / "sweep.json.tmp"
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(sweep / "sweep.json")


def _run(point: Point, common: Sequence[str], n_jobs: int, free: queue.Queue[int] | None) -> None:
    """One point in a process of its own; its output goes to its folder."""
    point.folder.mkdir(parents=True, exist_ok=True)
    for stale in ("error.txt", "metrics.json"):
        (point.folder / stale).unlink(missing_ok=True)
    path = str(point.folder).replace("\\", "\\\\").replace("'", "\\'")
    script = str(Path(sys.argv[0]).resolve())
    # An experiment may say hydra.mode=MULTIRUN, which must not reach its points: each would sweep again.
    command = [sys.executable, script, *point.overrides, *common, "hydra.mode=RUN", f"hydra.run.dir='{path}'"]
    device = free.get() if free is not None else None
    output = point.folder / "output.txt"
    try:
        with output.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=_environment(n_jobs, device))
            (point.folder / "running.json").write_text(json.dumps({"pid": process.pid}))
            code = process.wait()
    except BaseException:  # Ctrl-C: the child has it too, and what is finished stays
        process.wait()
        raise
    finally:
        (point.folder / "running.json").unlink(missing_ok=True)
        if free is not None and device is not None:
            free.put(device)
    if code or not point.finished:
        lines = output.read_text(errors="replace").splitlines()
        (point.folder / "error.txt").write_text("\n".join([f"exit code {code}", *lines[-ERROR_LINES:]]) + "\n")
        log.info("#%d failed: %s", point.number, _reason(lines))
    else:
        log.info("#%d done: %.4f", point.number, point.score)


def _environment(n_jobs: int, device: int | None) -> dict[str, str]:
    environment = {**os.environ, POINT: "1"}
    if n_jobs > 1:  # or their threads spin at each other's barriers
        threads = max(1, (os.cpu_count() or 1) // n_jobs)
        for name, value in (("OMP_NUM_THREADS", threads), ("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", 0)):
            environment.setdefault(name, str(value))
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(device)
    return environment


def _reason(lines: Sequence[str]) -> str:
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["no output"])[-1].removeprefix("error: ")


def _job_return(point: Point, sweep: Path) -> Any:
    from hydra.core.utils import JobReturn, JobStatus

    found = JobReturn(overrides=point.overrides)
    if point.finished:
        found.status, found.return_value = JobStatus.COMPLETED, point.score
        return found
    states = [one.status() for one in read_sweep(sweep)]
    reason = _reason((point.folder / "error.txt").read_text().splitlines())
    found.status = JobStatus.FAILED
    found.return_value = UserError(
        f"{states.count('failed')} of {len(states)} runs failed, the first being #{point.number}: {reason}\n"
        f"  It says more in {point.folder / 'output.txt'}. The others are finished; once it is mended:\n"
        f"  the same command with sweep.resume=true hydra.sweep.dir={sweep}"
    )
    return found
