"""Where the runs of a sweep are.

They are processes of this machine, jobs of submitit (Slurm's, or local ones), or tasks of Ray.
"""

from __future__ import annotations

import logging
import os
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dynarank.errors import UserError, first_line
from dynarank.sweeps.point import Job, Starter
from dynarank.sweeps.preloaded import start_forked, start_server
from dynarank.sweeps.progress import Progress


class Executor(Protocol):
    """Runs jobs to their ends. A run that fails is recorded in its folder, and raises nothing."""

    def check(self) -> None:
        """Raise `UserError` where it cannot run anything."""

    def run(self, jobs: Sequence[Job], sweep: Path, progress: Progress) -> None:
        """Return when all jobs have ended. After Ctrl-C none is left at work.

        It tells `progress` of every job that starts and that ends.
        """


def _shared_threads(n_jobs: int) -> dict[str, str]:
    """Return the variables that give each of `n_jobs` runs its share of the machine's threads.

    With more threads than cores, runs spin at each other's barriers. What the user has set stays.
    """
    if n_jobs == 1:
        return {}
    threads = max(1, (os.cpu_count() or 1) // n_jobs)
    # Threads that wait are to sleep, not to spin. The last is the name of GNU's OpenMP for that.
    shared = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    return {name: value for name, value in shared.items() if name not in os.environ}


def check_n_jobs(n_jobs: int) -> None:
    """Raise `UserError` for less than one run at a time."""
    if n_jobs < 1:
        raise UserError(f"hydra.launcher.n_jobs = {n_jobs}: must be at least 1")


@dataclass
class Processes:
    """Processes of this machine, side by side.

    Args:
        n_jobs: how many run at once.
        devices: GPUs that the runs take in turn, one each; empty leaves the choice to them.
        preload: whether the runs are forks of one process that has made the imports, where that
            can be: see `preloaded`.
    """

    n_jobs: int = 1
    devices: Sequence[int] = ()
    preload: bool = True
    _start: Starter | None = field(default=None, repr=False, compare=False)
    """What starts the jobs quicker than a command of their own; None: nothing does."""

    def check(self) -> None:
        """Raise `UserError` for less than one process.

        The imports begin here, so that they are made while the sweep's points are composed.
        """
        check_n_jobs(self.n_jobs)
        # Devices are named where there are GPUs, and no fork of the server may use one.
        if self.preload and not self.devices:
            variables = {**os.environ, **_shared_threads(self.n_jobs)}
            self._start = start_forked if start_server(variables) else None

    def run(self, jobs: Sequence[Job], sweep: Path, progress: Progress) -> None:
        """Run all jobs, `n_jobs` at a time."""
        free_devices: queue.Queue[int] = queue.Queue()
        for device in self.devices:
            free_devices.put(device)
        with ThreadPoolExecutor(self.n_jobs) as pool:
            # After Ctrl-C, `map` cancels the jobs that have not started. Those at work have had the
            # signal too, and end by themselves.
            list(pool.map(lambda job: self._run_job(job, free_devices, progress), jobs))

    def _run_job(
        self,
        job: Job,
        free_devices: queue.Queue[int],
        progress: Progress,
    ) -> None:
        """Run a job on the next free device, if devices were named."""
        progress.started(job)
        device = free_devices.get() if self.devices else None
        environment = _shared_threads(self.n_jobs)
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(device)
        try:
            job.run(environment, start=self._start)
        finally:
            if device is not None:
                free_devices.put(device)
        progress.ended(job)


@dataclass
class RayTasks:
    """Tasks of Ray, as many at once as their shares of the machines allow.

    Args:
        address: of a cluster; None for this machine.
        num_cpus: CPUs that a run takes.
        num_gpus: GPUs that a run takes; 0.5 lets two share one.
    """

    address: str | None = None
    num_cpus: float = 1
    num_gpus: float = 0

    def check(self) -> None:
        """Raise `UserError` where Ray is missing, cannot be reached, or has too few resources."""
        for name, value in (("num_cpus", self.num_cpus), ("num_gpus", self.num_gpus)):
            if value < 0:
                raise UserError(f"hydra.launcher.{name} = {value}: must be at least 0")
        try:
            import ray
        except ImportError:
            raise UserError("hydra/launcher=ray needs Ray: pip install 'dynarank[ray]'") from None
        # A sampling sweeper checks before each of its batches.
        if not ray.is_initialized():
            try:
                ray.init(
                    self.address,
                    include_dashboard=False,
                    log_to_driver=False,  # what runs print goes to their folders
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, ValueError) as error:
                raise UserError(
                    f"hydra.launcher.address = {self.address}: {first_line(error)}"
                ) from None
        for name, wanted, resource in (
            ("num_cpus", self.num_cpus, "CPU"),
            ("num_gpus", self.num_gpus, "GPU"),
        ):
            # Ray lets a task that no machine can hold wait without an end.
            available = ray.cluster_resources().get(resource, 0)
            if wanted > available:
                raise UserError(
                    f"hydra.launcher.{name} = {wanted}: "
                    f"all of Ray's machines have {available:g} {resource}s"
                )

    def run(self, jobs: Sequence[Job], sweep: Path, progress: Progress) -> None:
        """Run every job as a task."""
        import ray

        # No retries: a run that was lost is taken up from its checkpoint by sweep.resume=true.
        # A job is plain data, so that `Job.run` can be the task and the job its argument.
        task = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_retries=0)(Job.run)
        waiting = {}
        for job in jobs:
            waiting[task.remote(job)] = job
            progress.started(job, "is handed to Ray")
        try:
            while waiting:
                for done in ray.wait(list(waiting))[0]:
                    job = waiting.pop(done)
                    try:
                        # A run that failed raises nothing, and says so in its folder.
                        ray.get(done)
                    except ray.exceptions.RayError as error:
                        reason = f"error: Ray ended it: {type(error).__name__}"
                        job.point.record_failure(reason, str(error).splitlines())
                    progress.ended(job)
        except BaseException:
            for running in waiting:
                # Not by force, so that each task still stops its run.
                ray.cancel(running)
            # Wait for the tasks to stop their runs.
            ray.wait(list(waiting), num_returns=len(waiting), timeout=60)
            raise
