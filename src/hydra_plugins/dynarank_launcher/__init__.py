"""Hydra looks for launchers in packages of hydra_plugins; ours is in dynarank.training.sweep.

No postponed annotations here: Hydra runs this file before Python knows it as a module, which dataclasses cannot bear.
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
    """Runs side by side; the machine's threads are shared out among them."""
    devices: list[int] = field(default_factory=list)
    """GPUs to give to the runs, one each, in turn; none: every run sees all."""


ConfigStore.instance().store(group="hydra/launcher", name="fresh", node=FreshProcessConf, provider="dynarank")


class FreshProcessLauncher(Launcher):  # type: ignore[misc]
    """Runs `python SCRIPT OVERRIDES` for every point, so that none sees what another left in its process."""

    def __init__(self, n_jobs: int, devices: list[int]) -> None:
        self.n_jobs, self.devices = n_jobs, list(devices)
        self.config: Any = None
        self.context: Any = None

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        from dynarank.training.sweep import launch

        return launch(self.context, self.config, job_overrides, initial_job_idx, self.n_jobs, self.devices)
