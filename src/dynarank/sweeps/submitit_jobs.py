"""Runs of a sweep as jobs of submitit: on Slurm, or local ones."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dynarank.errors import UserError
from dynarank.run_folder import ERROR, RUNNING
from dynarank.sweeps.executors import check_n_jobs
from dynarank.sweeps.point import Job
from dynarank.sweeps.progress import Progress

POLL = 1.0
"""Seconds between two looks at jobs that are elsewhere."""
SUBMITTED = "submitit.json"
"""The file in a point's folder that names its job."""
SHARED = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
"""Parameters that submitit has for all clusters; those that Slurm alone has take a prefix."""


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

    # submitit has no public name for it.
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
        # Slurm knows nothing of jobs that ended long ago.
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
        check_n_jobs(1 if self.n_jobs is None else self.n_jobs)
        try:
            import submitit
        except ImportError:
            raise UserError(
                f"hydra/launcher=submitit_{self.cluster} needs submitit: "
                "pip install 'dynarank[slurm]'"
            ) from None
        if self.cluster == "slurm" and submitit.SlurmExecutor.affinity() < 0:
            raise UserError(
                "hydra/launcher=submitit_slurm: there is no Slurm on this machine (no srun). "
                "Start the sweep on a login node, or take hydra/launcher=submitit_local"
            )

    def run(self, jobs: Sequence[Job], sweep: Path, progress: Progress) -> None:
        """Submit all jobs and wait for them, at most `n_jobs` at a time."""
        # submitit puts each job's number in place of %j.
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
                submitted.cancel(check=False)  # one that has ended is no error
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
            # The job makes it when it starts, which may be hours from now.
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
            # The process that removes it was killed with its job.
            (point.folder / RUNNING).unlink(missing_ok=True)
