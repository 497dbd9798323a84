"""The sweeper that searches. Hydra looks for it here; what it does is in dynarank.sweeps.tuning.

Annotations are not postponed here: Hydra runs this file before Python knows it as a module, which
dataclasses cannot bear.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper


@dataclass
class TuneConf:
    """A search for the settings that score best, by Optuna."""

    _target_: str = "hydra_plugins.dynarank_sweeper.TuneSweeper"
    _convert_: str = "all"
    n_trials: int = 20
    """Settings to try."""
    n_jobs: int | None = None
    """Trials side by side; null: hydra.launcher.n_jobs, where the launcher has it, else 1. Trials
    that run at once cannot learn from one another."""
    n_startup_trials: int = 5
    """How many of the first trials are drawn at random."""
    seed: int = 1
    """Decides what is drawn."""
    params: dict[str, Any] = field(default_factory=dict)
    """What to search, as on the command line. Values of `seed` are not searched: each trial runs
    with all of them, and its score is their mean."""


ConfigStore.instance().store(group="hydra/sweeper", name="tune", node=TuneConf, provider="dynarank")


class TuneSweeper(Sweeper):  # type: ignore[misc]
    """Asks Optuna for settings, and tells it how the launcher's runs scored."""

    def __init__(
        self,
        n_trials: int,
        n_jobs: int | None,
        n_startup_trials: int,
        seed: int,
        params: dict[str, Any],
    ) -> None:
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.n_startup_trials = n_startup_trials
        self.seed = seed
        self.params = params
        self.launcher: Any = None
        self.config: Any = None
        self.context: Any = None

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from hydra.core.plugins import Plugins

        self.context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from dynarank.sweeps.search_space import parse_space
        from dynarank.sweeps.tuning import Tuning

        n_jobs = self.n_jobs if self.n_jobs is not None else getattr(self.launcher, "n_jobs", 1)
        space = parse_space(
            [*(f"{name}={value}" for name, value in self.params.items()), *arguments]
        )
        tuning = Tuning(space, self.context, self.config, self.launcher)
        tuning.run(self.n_trials, n_jobs, self.n_startup_trials, self.seed)
