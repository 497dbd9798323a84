"""Where the runs of a sweep are.

They are processes of this machine, jobs of submitit (Slurm's, or local ones), or tasks of Ray.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from dynarank.errors import UserError, first_line
from dynarank.run_folder import ERROR, RUNNING
from dynarank.sweeps.point import Job
from dynarank.sweeps.progress import Progress

POLL = 1.0
"""Seconds between two looks at jobs that are elsewhere."""
SUBMITTED = "submitit.json"
"""The file in a point's folder that names its job."""
SHARED = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
"""Parameters that submitit has for all clusters; those that Slurm alone has take a prefix."""


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
    shared = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    return {name: value for name, value in shared.items() if name not in os.environ}


def _check_n_jobs(n_jobs: int) -> None:
    if n_jobs < 1:
        raise UserError(f"hydra.launcher.n_jobs = {n_jobs}: must be at least 1")


@dataclass
class Processes:
    """Processes of this machine, side by side.

    Args:
        n_jobs: how many run at once.
        devices: GPUs that the runs take in turn, one each; empty leaves the choice to them.
    """

    n_jobs: int = 1
    devices: Sequence[int] = ()

    def check(self) -> None:
        """Raise `UserError` for less than one process."""
        _check_n_jobs(self.n_jobs)

    def run(self, jobs: Sequence[Job], sweep: Path, progress: Progress) -> None:
        """Run all jobs, `n_jobs` at a time."""
        free_devices: queue.Queue[int] = queue.Queue()
        for device in self.devices:
            free_devices.put(device)
        with ThreadPoolExecutor(self.n_jobs) as pool:
            # After Ctrl-C, `map` cancels the jobs that have not started. Those at work have had the
            # signal too, and end by themselves.
            list(pool.map(lambda job: self._run_job(job, free_devices, progress), jobs))

    def _run_job(self, job: Job, free_devices: queue.Queue[int], progress: Progress) -> None:
        """Run a job on the next free device, if devices were named."""
        progress.started(job)
        device = free_devices.get() if self.devices else None
        environment = _shared_threads(self.n_jobs)
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(device)
        try:
            job.run(environment)
        finally:
            if device is not None:
                free_devices.put(device)
        progress.ended(job)


def _slurm_ranks() -> dict[str, str]:
    """Return a Slurm task's place in the job under the names that Lightning and torch look at.

    It is empty in a job of a single task.
    """
    if int(os.environ.get("SLURM_NTASKS", 1)) == 1:
        return {}
    ranks = {}
    for name, slurm_name in (("LOCAL_RANK", "SLURM_LOCALID"), ("NODE_RANK", "SLURM_NODEID")):
        if slurm_name in os.environ:
            ranks[name] = os.environ[slurm_name]
    return ranks


def _preemption_signal() -> signal.Signals:
    """Return the signal by which submitit tells a job that its time is up."""
    from submitit import JobEnvironment

    return signal.Signals(JobEnvironment._usr_sig())


class SubmittedRun:
    """What a submitit job calls.

    It runs the command. When the job's time is up, or another job needs its place, it has the
    command save, and submitit puts the job into the queue again.
    """

    def __call__(self, job: Job) -> int:
        """Run the job's command, and return its exit code."""
        from submitit import JobEnvironment

        # Slurm signals every process of a job, and submitit's local executor its own alone. The
        # command ignores the signal, and `checkpoint` reaches it in both.
        rank = JobEnvironment().global_rank
        return job.run(_slurm_ranks(), rank, ignored=(_preemption_signal(),))

    def checkpoint(self, job: Job) -> Any:
        """Have the command save and end, and return what goes on from there."""
        from submitit.helpers import DelayedSubmission

        job.stop()
        return DelayedSubmission(self, job.resumed())


def _refuse_queued(jobs: Sequence[Job], folder: Path) -> None:
    """Refuse to submit runs again whose jobs Slurm still has from an earlier command.

    Raises:
        UserError: such a job waits in the queue or is at work.
    """
    from submitit import SlurmJob

    queued = []
    for job in jobs:
        record = job.point.folder / SUBMITTED
        known = json.loads(record.read_text()) if record.is_file() else {}
        if known.get("cluster") != "slurm":
            continue
        earlier: SlurmJob[int] = SlurmJob(folder, known["id"])
        if earlier.state != "UNKNOWN" and not earlier.done(force_check=True):
            queued.append(known["id"])
    if queued:
        raise UserError(
            f"jobs of this sweep are still in the queue or at work: {' '.join(queued)}. "
            "Wait for them, or scancel them, and give the same command again"
        )


@dataclass
class Submitit:
    """Jobs of submitit: on Slurm all in one array, or local ones. Its files are in SWEEP/submitit.

    Args:
        cluster: `slurm` or `local`.
        parameters: submitit's, as Hydra's launchers for it name them.
        n_jobs: how many are submitted at once; None submits them all together.
        max_num_timeout: how often a job that timed out is put into the queue again.
        environment: variables for every run, where the user has set nothing else.
    """

    cluster: str
    parameters: Mapping[str, Any]
    n_jobs: int | None = None
    max_num_timeout: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raise `UserError` where submitit or Slurm is missing."""
        _check_n_jobs(1 if self.n_jobs is None else self.n_jobs)
        try:
            import submitit
        except ImportError:
            raise UserError(
                f"hydra/launcher=submitit_{self.cluster} needs submitit: pip install -e '.[slurm]'"
            ) from None
        if self.cluster == "slurm" and submitit.SlurmExecutor.affinity() < 0:
            raise UserError(
                "hydra/launcher=submitit_slurm: there is no Slurm on this machine (no srun). "
                "Start the sweep on a login node, or take hydra/launcher=submitit_local"
            )

    def run(self, jobs: Sequence[Job], sweep: Path, progress: Progress) -> None:
        """Submit all jobs and wait for them, at most `n_jobs` at a time."""
        folder = sweep.resolve() / "submitit" / "%j"
        executor = self._executor(folder)
        if self.cluster == "slurm":
            _refuse_queued(jobs, folder)
        waiting = list(jobs)
        active: dict[int, tuple[Job, Any]] = {}
        try:
            while waiting or active:
                free = len(waiting) if self.n_jobs is None else self.n_jobs - len(active)
                batch, waiting = waiting[:free], waiting[free:]
                active |= self._submit(executor, batch, progress)
                for number, (job, submitted) in list(active.items()):
                    if submitted.done():
                        del active[number]
                        self._finish(job, submitted)
                        progress.ended(job)
                time.sleep(POLL if active else 0)
        except BaseException:
            for _, submitted in active.values():
                submitted.cancel(check=False)
            raise

    def _executor(self, folder: Path) -> Any:
        """Return submitit's executor. Raises `UserError` for parameters that it does not take."""
        import submitit

        logging.getLogger("submitit").propagate = False  # it prints by itself
        prefixed = {}
        for name, value in self.parameters.items():
            prefixed[name if name in SHARED else f"slurm_{name}"] = value
        executor: Any
        try:
            if self.cluster == "local":
                executor = submitit.LocalExecutor(folder, max_num_timeout=self.max_num_timeout)
                executor.update_parameters(**self.parameters)
            else:
                executor = submitit.AutoExecutor(
                    folder, cluster="slurm", slurm_max_num_timeout=self.max_num_timeout
                )
                executor.update_parameters(name="dynarank", **prefixed)
        except (ValueError, TypeError, NameError) as error:
            raise UserError(f"hydra.launcher: submitit does not take that: {error}") from None
        return executor

    def _submit(
        self, executor: Any, batch: Sequence[Job], progress: Progress
    ) -> dict[int, tuple[Job, Any]]:
        """Submit jobs and record their names; return each with submitit's job, by point number."""
        from submitit.core.utils import FailedJobError

        if not batch:
            return {}
        environment = {
            name: value for name, value in self.environment.items() if name not in os.environ
        }
        jobs = [replace(job, environment={**environment, **job.environment}) for job in batch]
        try:
            all_submitted = executor.map_array(SubmittedRun(), jobs)
        except FailedJobError as error:
            raise UserError(f"hydra.launcher: {str(error).strip()}") from None
        by_number = {}
        for job, submitted in zip(batch, all_submitted, strict=True):
            progress.started(job, f"is job {submitted.job_id}")
            job.point.folder.mkdir(parents=True, exist_ok=True)
            record = job.point.folder / SUBMITTED
            record.write_text(json.dumps({"cluster": self.cluster, "id": submitted.job_id}) + "\n")
            by_number[job.point.number] = (job, submitted)
        return by_number

    def _finish(self, job: Job, submitted: Any) -> None:
        """Record a job that ended without its run.

        What happened to the run itself is in its folder already.
        """
        point = job.point
        error = submitted.exception()
        if error is not None and not point.finished and not (point.folder / ERROR).is_file():
            point.record_failure(
                f"error: job {submitted.job_id} ended without a result, state {submitted.state}",
                str(error).splitlines(),
            )
            (point.folder / RUNNING).unlink(missing_ok=True)


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
            raise UserError("hydra/launcher=ray needs Ray: pip install -e '.[ray]'") from None
        if not ray.is_initialized():
            try:
                ray.init(
                    self.address,
                    include_dashboard=False,
                    log_to_driver=False,
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
            available = ray.cluster_resources().get(resource, 0)
            if wanted > available:
                raise UserError(
                    f"hydra.launcher.{name} = {wanted}: "
                    f"all of Ray's machines have {available:g} {resource}s"
                )

    def run(self, jobs: Sequence[Job], sweep: Path, progress: Progress) -> None:
        """Run every job as a task."""
        import ray

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
                        ray.get(done)
                    except ray.exceptions.RayError as error:
                        reason = f"error: Ray ended it: {type(error).__name__}"
                        job.point.record_failure(reason, str(error).splitlines())
                    progress.ended(job)
        except BaseException:
            for running in waiting:
                ray.cancel(running)
            # Wait for the tasks to stop their runs.
            ray.wait(list(waiting), num_returns=len(waiting), timeout=60)
            raise
