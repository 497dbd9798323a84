"""Launchers of sweeps. Hydra looks for them here; what they do is in dynarank.sweeps.

Annotations are not postponed here: Hydra runs this file before Python knows it as a module, which
dataclasses cannot bear.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher


@dataclass
class FreshProcessConf:
    """Every point of a sweep in a process of its own."""

    _target_: str = "hydra_plugins.dynarank_launcher.FreshProcessLauncher"
    n_jobs: int = 1
    """Runs side by side; they share the machine's threads."""
    devices: list[int] = field(default_factory=list)
    """GPUs to give to the runs, one each, in turn; []: every run sees all."""
    preload: bool = True
    """Make the imports once for all runs, where there is no GPU (Linux); false: every run does."""


@dataclass
class SubmititLocalConf:
    """Every point as a job of submitit's on this machine: a Slurm sweep without Slurm."""

    _target_: str = "hydra_plugins.dynarank_launcher.SubmititLauncher"
    _convert_: str = "all"
    cluster: str = "local"
    n_jobs: int = 1
    """Jobs side by side."""
    timeout_min: int = 1440
    """Minutes after which a job is ended."""
    max_num_timeout: int = 20
    """How many times a run goes on after its time was up."""
    gpus_per_node: int = 0
    """GPUs that each job sees, the first ones of the machine."""
    signal_delay_s: int = 120
    """Seconds before the end at which a run is told to save."""
    setup: list[str] = field(default_factory=list)
    """Shell commands before each job."""


@dataclass
class SubmititSlurmConf:
    """Every point as a Slurm job, all in one array."""

    _target_: str = "hydra_plugins.dynarank_launcher.SubmititLauncher"
    _convert_: str = "all"
    cluster: str = "slurm"
    partition: str | None = None
    """The partition of the cluster; null: its default one."""
    account: str | None = None
    """The account that pays; null: the user's default one."""
    timeout_min: int = 1440
    """Minutes after which Slurm ends a job; the run goes on in a new one, see max_num_timeout."""
    max_num_timeout: int = 20
    """How many times a run goes on after its time was up. Being preempted does not count."""
    signal_delay_s: int = 120
    """Seconds before the end at which a run is told to save."""
    nodes: int = 1
    """Machines of one run."""
    tasks_per_node: int = 1
    """Processes of one run on each node: with DDP, as many as it has GPUs there."""
    gpus_per_node: int | None = None
    """GPUs of each machine."""
    cpus_per_task: int | None = None
    """CPUs of each process, and its threads."""
    mem_gb: float | None = None
    """Memory of each node."""
    array_parallelism: int = 256
    """Jobs side by side."""
    setup: list[str] = field(default_factory=list)
    """Shell commands before each job: module load ..., export ..."""
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Anything else of sbatch: +hydra.launcher.additional_parameters.qos=high."""


@dataclass
class RayConf:
    """Every point as a task of Ray."""

    _target_: str = "hydra_plugins.dynarank_launcher.RayLauncher"
    address: str | None = None
    """Address of a cluster whose machines share the folders; auto: the one that this machine is
    in; null: this machine alone."""
    num_cpus: float = 1
    """CPUs that a run takes."""
    num_gpus: float = 0
    """GPUs that a run takes; 0.5: two share one."""


for name, node in (
    ("fresh", FreshProcessConf),
    ("submitit_local", SubmititLocalConf),
    ("submitit_slurm", SubmititSlurmConf),
    ("ray", RayConf),
):
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="dynarank")


class FreshProcessLauncher(Launcher):  # type: ignore[misc]
    """Runs the train command for every point, so that none sees what another left in memory."""

    def __init__(self, n_jobs: int, devices: list[int], preload: bool = True) -> None:
        from dynarank.sweeps.executors import Processes

        self.n_jobs = n_jobs
        self.executor: Any = Processes(n_jobs, list(devices), preload)
        self.config: Any = None
        self.context: Any = None

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int, resume: bool = False
    ) -> Sequence[Any]:
        from dynarank.sweeps.sweep import launch

        return launch(
            context=self.context,
            config=self.config,
            job_overrides=job_overrides,
            first=initial_job_idx,
            executor=self.executor,
            resume=resume,
        )


class SubmititLauncher(FreshProcessLauncher):
    """Runs the same command for every point, in a job of submitit's."""

    def __init__(
        self, cluster: str, max_num_timeout: int, n_jobs: int | None = None, **parameters: Any
    ) -> None:
        from dynarank.sweeps.submitit_jobs import Submitit

        self.n_jobs = n_jobs or 1
        given = {name: value for name, value in parameters.items() if value not in (None, [], {})}
        threads = parameters.get("cpus_per_task")
        environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        self.executor = Submitit(cluster, given, n_jobs, max_num_timeout, environment)


class RayLauncher(FreshProcessLauncher):
    """Runs the same command for every point, in a task of Ray."""

    def __init__(self, address: str | None, num_cpus: float, num_gpus: float) -> None:
        from dynarank.sweeps.executors import RayTasks

        self.n_jobs = 1
        self.executor = RayTasks(address, num_cpus, num_gpus)
