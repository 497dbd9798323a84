"""Where the runs of a sweep are: processes of this machine, jobs of submitit (Slurm's, or local ones), tasks of Ray."""

from __future__ import annotations

import json
import logging
import os
import queue
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from dynarank.errors import UserError, first_line
from dynarank.run_folder import ERROR, RUNNING
from dynarank.sweeps.point import Job

log = logging.getLogger(__name__)

POLL = 1.0
"""Seconds between two looks at jobs that are elsewhere."""


SUBMITTED = "submitit.json"
"""Names a point's job."""
SHARED = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
"""Parameters that submitit has for all clusters; Slurm's alone take a prefix."""


class Executor(Protocol):
    """Runs jobs to their ends. What fails is in its folder, and no exception."""

    def check(self) -> None:
        """Raise `UserError` where it cannot run anything."""

    def run(self, jobs: Sequence[Job], sweep: Path) -> None:
        """Return when all jobs have ended. After Ctrl-C none is left at work."""


def _shared_threads(n_jobs: int) -> dict[str, str]:
    """Threads a run when `n_jobs` share the machine; or they spin at each other's barriers. What is set stays."""
    if n_jobs == 1:
        return {}
    threads = max(1, (os.cpu_count() or 1) // n_jobs)
    shared = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    return {name: value for name, value in shared.items() if name not in os.environ}


def _check_n_jobs(n_jobs: int) -> None:
    if n_jobs < 1:
        raise UserError(f"hydra.launcher.n_jobs = {n_jobs}: at least 1")


@dataclass
class Processes:
    """Processes of this machine, `n_jobs` side by side, each with one of `devices`, if any, in turn."""

    n_jobs: int = 1
    devices: Sequence[int] = ()

    def check(self) -> None:
        _check_n_jobs(self.n_jobs)

    def run(self, jobs: Sequence[Job], sweep: Path) -> None:
        free: queue.Queue[int] = queue.Queue()
        for device in self.devices:
            free.put(device)

        def run(job: Job) -> None:
            log.info("#%d starts: %s", job.point.number, job.shown)
            device = free.get() if self.devices else None
            try:
                visible = {} if device is None else {"CUDA_VISIBLE_DEVICES": str(device)}
                job.run({**_shared_threads(self.n_jobs), **visible})
            finally:
                if device is not None:
                    free.put(device)
            job.point.log_outcome()

        with ThreadPoolExecutor(self.n_jobs) as pool:
            list(
                pool.map(run, jobs)
            )  # after Ctrl-C, map cancels what has not started; those at work have had it too, and end


def _ranks() -> dict[str, str]:
    """Of one of a Slurm job's several tasks, its place in the names that others look at, too."""
    names = {"LOCAL_RANK": "SLURM_LOCALID", "NODE_RANK": "SLURM_NODEID"}
    if int(os.environ.get("SLURM_NTASKS", 1)) == 1:
        return {}
    return {name: os.environ[theirs] for name, theirs in names.items() if theirs in os.environ}


class SubmittedRun:
    """What a submitit job calls: it runs the command, and when its time is up or another job needs the place, has it save.

    submitit then puts the job into the queue again.
    """

    def __call__(self, job: Job) -> int:
        from submitit import JobEnvironment

        # Slurm signals every process of a job, and submitit's local executor its own alone; `stop` reaches the run in both.
        return job.run(_ranks(), JobEnvironment().global_rank, (JobEnvironment._usr_sig(),))

    def checkpoint(self, job: Job) -> Any:
        from submitit.helpers import DelayedSubmission

        job.stop()
        return DelayedSubmission(self, job.going_on())


def _refuse_queued(jobs: Sequence[Job], folder: Path) -> None:
    """Raise `UserError` where Slurm still has jobs of an earlier command for the same runs."""
    from submitit import SlurmJob

    queued = []
    for record in (job.point.folder / SUBMITTED for job in jobs):
        known = json.loads(record.read_text()) if record.is_file() else {}
        if known.get("cluster") == "slurm":
            earlier: SlurmJob[int] = SlurmJob(folder, known["id"])
            if earlier.state != "UNKNOWN" and not earlier.done(force_check=True):
                queued.append(known["id"])
    if queued:
        raise UserError(
            f"jobs of this sweep are still in the queue or at work: {' '.join(queued)}. Wait for them, or scancel them, "
            "and give the same command again"
        )


@dataclass
class Submitit:
    """Jobs of submitit, on `slurm` all in one array, or `local`, at most `n_jobs` at a time. Its files: SWEEP/submitit."""

    cluster: str
    parameters: Mapping[str, Any]
    """submitit's, as Hydra's launchers for it name them."""
    n_jobs: int | None = None
    """At once; None: submitted all together."""
    max_num_timeout: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    """For every run, where the user has set nothing else."""

    def check(self) -> None:
        _check_n_jobs(1 if self.n_jobs is None else self.n_jobs)
        try:
            import submitit
        except ImportError:
            raise UserError(
                f"hydra/launcher=submitit_{self.cluster} needs submitit: pip install -e '.[slurm]'"
            ) from None
        if self.cluster == "slurm" and submitit.SlurmExecutor.affinity() < 0:
            raise UserError(
                "hydra/launcher=submitit_slurm: there is no Slurm on this machine (no srun). Start the sweep on a login "
                "node, or take hydra/launcher=submitit_local"
            )

    def run(self, jobs: Sequence[Job], sweep: Path) -> None:
        folder = sweep.resolve() / "submitit" / "%j"
        executor = self._executor(folder)
        if self.cluster == "slurm":
            _refuse_queued(jobs, folder)
        waiting = list(jobs)
        active: dict[int, tuple[Job, Any]] = {}
        try:
            while waiting or active:
                batch = waiting if self.n_jobs is None else waiting[: self.n_jobs - len(active)]
                waiting = waiting[len(batch) :]
                active |= self._submit(executor, batch)
                for number in [
                    number for number, (_, submitted) in active.items() if submitted.done()
                ]:
                    self._finish(*active.pop(number))
                time.sleep(POLL if active else 0)
        except BaseException:
            for _, submitted in active.values():
                submitted.cancel(check=False)
            raise

    def _executor(self, folder: Path) -> Any:
        import submitit

        logging.getLogger("submitit").propagate = False  # it prints by itself
        prefixed = {
            name if name in SHARED else f"slurm_{name}": value
            for name, value in self.parameters.items()
        }
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

    def _submit(self, executor: Any, batch: Sequence[Job]) -> dict[int, tuple[Job, Any]]:
        from submitit.core.utils import FailedJobError

        if not batch:
            return {}
        environment = {
            name: value for name, value in self.environment.items() if name not in os.environ
        }
        told = [replace(job, environment={**environment, **job.environment}) for job in batch]
        try:
            submitted = executor.map_array(SubmittedRun(), told)
        except FailedJobError as error:
            raise UserError(f"hydra.launcher: {str(error).strip()}") from None
        for job, one in zip(batch, submitted, strict=True):
            log.info("#%d is job %s: %s", job.point.number, one.job_id, job.shown)
            job.point.folder.mkdir(parents=True, exist_ok=True)
            record = job.point.folder / SUBMITTED
            record.write_text(json.dumps({"cluster": self.cluster, "id": one.job_id}) + "\n")
        return {job.point.number: (job, one) for job, one in zip(batch, submitted, strict=True)}

    def _finish(self, job: Job, submitted: Any) -> None:
        point = job.point
        error = (
            submitted.exception()
        )  # what happened to the job; what happened to the run is in its folder already
        if error is not None and not point.finished and not (point.folder / ERROR).is_file():
            lines = str(error).splitlines()
            point.fail(
                f"error: job {submitted.job_id} ended without a result, state {submitted.state}",
                lines,
            )
            (point.folder / RUNNING).unlink(missing_ok=True)
        point.log_outcome()


@dataclass
class RayTasks:
    """Tasks of Ray, of a cluster at `address` or of this machine; as many at once as their shares of it allow."""

    address: str | None = None
    num_cpus: float = 1
    num_gpus: float = 0

    def check(self) -> None:
        for name, value in (("num_cpus", self.num_cpus), ("num_gpus", self.num_gpus)):
            if value < 0:
                raise UserError(f"hydra.launcher.{name} = {value}: at least 0")
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
            if wanted > (there := ray.cluster_resources().get(resource, 0)):
                raise UserError(
                    f"hydra.launcher.{name} = {wanted}: all of Ray's machines have {there:g} {resource}s"
                )

    def run(self, jobs: Sequence[Job], sweep: Path) -> None:
        import ray

        task = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_retries=0)(Job.run)
        waiting = {task.remote(job): job for job in jobs}
        try:
            while waiting:
                for done in ray.wait(list(waiting))[0]:
                    point = waiting.pop(done).point
                    try:
                        ray.get(done)
                    except ray.exceptions.RayError as error:
                        point.fail(
                            f"error: Ray ended it: {type(error).__name__}", str(error).splitlines()
                        )
                    point.log_outcome()
        except BaseException:
            for one in waiting:
                ray.cancel(one)
            ray.wait(
                list(waiting), num_returns=len(waiting), timeout=60
            )  # for them to stop their runs
            raise
