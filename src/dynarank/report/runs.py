"""Runs as their folders tell them: configuration, scores, ranks, history. The tracker is not read.

A folder that cannot be used is left out with a reason, so that one damaged run does not end the
report on all the others.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynarank.errors import UserError
from dynarank.report.results_check import check_results
from dynarank.report.run_reader import (
    UnreadableFile,
    as_score,
    read_history,
    read_overrides,
    read_prunings,
    read_ranks,
    read_settings,
    read_text,
)
from dynarank.run_folder import (
    CONFIG,
    ERROR,
    HISTORY,
    METRICS,
    OVERRIDES,
    RANK_HISTORY,
    RANKS,
    failure_reason,
)

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[int, int], None]
"""What is told how many parts are done, and of how many."""


@dataclass(frozen=True)
class Run:
    """A finished run's folder."""

    folder: Path
    settings: dict[str, Any]
    """The configuration, flattened: `{"budget.target": 2}`."""
    results: dict[str, Any]
    """The content of metrics.json, checked by `check_results`."""
    history: pd.DataFrame = field(repr=False, compare=False)
    """The content of metrics.csv: a row a logged step."""
    ranks: dict[str, int] = field(default_factory=dict, repr=False)
    """The kept rank by matrix; empty for a method without ranks."""
    prunings: list[tuple[int, dict[str, int]]] = field(default_factory=list, repr=False)
    """Optimizer step and rank by matrix after every pruning. Where no history was kept, the final
    ranks alone."""

    @property
    def task(self) -> str:
        return str(self.results["task"])

    @property
    def method(self) -> str:
        return str(self.results["method"])

    @property
    def model(self) -> str:
        return str(self.results["model"])

    @property
    def seed(self) -> int:
        return int(self.results["seed"])

    @property
    def metric(self) -> str:
        """The metric that selects the epoch."""
        return str(self.results["selected"]["metric"])

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        """The history's columns, (rows) each: pandas takes milliseconds to select one."""
        return {str(name): self.history[name].to_numpy(dtype=float) for name in self.history}

    def column(self, name: str) -> np.ndarray:
        """Return a column of the history, (rows) float, NaN where nothing was logged."""
        return self._columns[name]

    def has(self, name: str) -> bool:
        """Return whether the history holds a value of that name."""
        return name in self._columns and not bool(np.isnan(self._columns[name]).all())

    @property
    def adapter_parameters(self) -> float:
        return float(self.results["adapter_parameters"])

    @property
    def total_steps(self) -> int:
        """The optimizer steps of the whole run; 0 where they are not recorded."""
        return int(self.results.get("total_steps") or 0)

    def metrics(self, last: bool = False) -> dict[str, float]:
        """Return all metrics at the selected epoch, or at the last one; NaN where undefined."""
        record = self.results["last" if last else "metrics"]
        return {name: as_score(value) for name, value in record.items()}

    def other_metrics(self, last: bool = False) -> dict[str, float]:
        """Return all metrics but the one that selects; those of test rows are called 'test ...'.

        The selected weights alone are tested, so the last epoch has no such scores.
        """
        others = self.metrics(last)
        del others[self.metric]
        tested = {} if last else self.results.get("test_metrics") or {}
        for name, value in tested.items():
            others[f"test {name}"] = as_score(value)
        return others

    def score(self, last: bool = False) -> float:
        """Return the selecting metric at the selected epoch, or at the last one."""
        return as_score(self.results["last" if last else "metrics"][self.metric])

    @cached_property
    def overrides(self) -> list[str] | None:
        """What was given on the command line; None where it is not recorded."""
        return read_overrides(self.folder / OVERRIDES)

    @property
    def command(self) -> str | None:
        """The command that repeats this run alone, for a shell; None without `overrides`."""
        if self.overrides is None:
            return None
        kept = []
        for override in self.overrides:
            if not override.lstrip("+").startswith("sweep."):
                kept.append(override)
        if any(override.lstrip("+").startswith("experiment=") for override in kept):
            kept.append("hydra.mode=RUN")  # The experiment may be a sweep.
        return shlex.join(["dynarank", "train", *kept])


@dataclass(frozen=True)
class LeftOut:
    """A run's folder that is not reported on."""

    folder: Path
    reason: str
    output: str = ""
    """The last lines of a failed run."""

    def __str__(self) -> str:
        return f"{self.folder}: {self.reason}"


def read_runs(
    places: Sequence[Path], progress: Progress | None = None
) -> tuple[list[Run], list[LeftOut]]:
    """Return all finished runs in or below the folders, and the folders that are left out.

    Left out are runs that are unfinished, failed, over budget, or damaged.

    Raises:
        UserError: a folder does not exist, or none holds a finished run.
    """
    folders = list(run_folders(places))
    runs: list[Run] = []
    left_out = _without_settings(places)
    for number, folder in enumerate(folders, start=1):
        try:
            outcome = read_run(folder)
        except (UnreadableFile, OSError) as error:
            outcome = LeftOut(folder, str(error))
        if isinstance(outcome, Run):
            runs.append(outcome)
        else:
            left_out.append(outcome)
        if progress is not None:
            progress(number, len(folders))
    if not runs:
        lines = "".join(f"\n  {one}" for one in left_out)
        raise UserError(f"no finished run in {', '.join(map(str, places))}{lines}")
    return runs, left_out


def _without_settings(places: Sequence[Path]) -> list[LeftOut]:
    """Return the named folders of finished runs that lack their configuration."""
    found = []
    for place in places:
        if (place / METRICS).is_file() and not (place / CONFIG).is_file():
            reason = f"has no {CONFIG}; where hydra.run.dir names a run's folder, Hydra writes it"
            found.append(LeftOut(place, reason))
    return found


def run_folders(places: Sequence[Path]) -> Iterator[Path]:
    """Yield every run's folder once: each that has a .hydra/config.yaml.

    Raises:
        UserError: a place does not exist.
    """
    seen = set()
    for place in places:
        if not place.is_dir():
            raise UserError(
                f"{place}: there is no such folder. Give a run's folder, a sweep's, or outputs/"
            )
        for config in sorted(place.rglob(CONFIG)):
            folder = config.parent.parent
            # Named twice, or by a link, it is one run all the same.
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder


def read_run(folder: Path) -> Run | LeftOut:
    """Return the run in a folder, or why there is none to report on.

    Raises:
        UnreadableFile: one of its files is damaged.
    """
    # A link to nothing counts as there: such a run is damaged, and not unfinished.
    if not os.path.lexists(folder / METRICS):
        return _unfinished(folder)
    results = check_results(folder / METRICS)
    if not results["at_budget"]:
        return LeftOut(folder, "ended before its ranks were frozen, so it is over budget")
    settings = read_settings(folder / CONFIG)
    if "model.name" in settings:
        # In the configuration the name may be an expression over the model's path.
        settings["model.name"] = results["model"]
    ranks: dict[str, int] = {}
    if os.path.lexists(folder / RANKS):
        ranks = read_ranks(folder / RANKS)
    prunings: list[tuple[int, dict[str, int]]] = []
    if os.path.lexists(folder / RANK_HISTORY):
        prunings = read_prunings(folder / RANK_HISTORY)
    if ranks and not prunings:
        prunings = [(results.get("total_steps") or 0, ranks)]
    return Run(
        folder=folder,
        settings=settings,
        results=results,
        history=read_history(folder / HISTORY),
        ranks=ranks,
        prunings=prunings,
    )


def _unfinished(folder: Path) -> LeftOut:
    if not os.path.lexists(folder / ERROR):
        return LeftOut(folder, "not finished (no metrics.json)")
    lines = read_text(folder / ERROR).splitlines()
    return LeftOut(folder, f"failed: {failure_reason(lines)}", "\n".join(lines))
