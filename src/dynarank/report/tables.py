"""Runs in a table over seeds: a row a setting, a column a task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dynarank.errors import UserError, nearest
from dynarank.report.run_reader import OPEN
from dynarank.report.run_settings import implied_settings, varied_settings
from dynarank.report.runs import Run
from dynarank.report.significance import Summary, summarize

Setting = tuple[Any, ...]
"""A row's values of the settings that vary."""
ALPHA = 0.05
"""A difference is called significant where its corrected p is not above this."""


@dataclass
class Table:
    """Scores by setting, task and seed."""

    keys: list[str]
    """The names of the settings that vary."""
    tasks: list[str]
    metrics: dict[str, str]
    """The metric that selects, by task."""
    cells: dict[tuple[Setting, str], dict[int, Run]]
    """The runs by seed, by setting and task."""
    last: bool = False
    """Whether scores are those of the last epoch instead of the selected one."""
    settings: list[Setting] = field(default_factory=list)
    implied: list[str] = field(default_factory=list)
    """Settings that differ along with the keys."""

    def setting(self, run: Run) -> Setting:
        """Return a run's values of the keys."""
        return tuple(run.settings.get(key, OPEN) for key in self.keys)

    def runs(self) -> list[Run]:
        """Return all runs, by task, setting and seed."""
        runs = []
        for task in self.tasks:
            for setting in self.settings:
                runs.extend(self.cell(setting, task))
        return runs

    def cell(self, setting: Setting, task: str) -> list[Run]:
        """Return the runs of a setting on a task, by seed; none where there is no such run."""
        return [run for _, run in sorted(self.cells.get((setting, task), {}).items())]

    def scores(self, setting: Setting, task: str) -> dict[int, float]:
        """Return the scores by seed; empty where there is no run."""
        cell = self.cells.get((setting, task), {})
        return {seed: run.score(self.last) for seed, run in cell.items()}

    def summary(self, setting: Setting, task: str) -> Summary | None:
        """Return the summary over seeds; None where there is no run."""
        return self._summaries.get((setting, task))

    @cached_property
    def _summaries(self) -> dict[tuple[Setting, str], Summary]:
        summaries = {}
        for setting, task in self.cells:
            summaries[setting, task] = summarize(list(self.scores(setting, task).values()))
        return summaries

    def order(self, task: str) -> list[Setting]:
        """Return the settings by mean score, the highest first; those without one are missing."""
        means = {}
        for setting in self.settings:
            summary = self.summary(setting, task)
            if summary is not None and not math.isnan(summary.mean):
                means[setting] = summary.mean
        return sorted(means, key=lambda setting: -means[setting])

    def label(self, setting: Setting) -> str:
        """Return the setting in words; the method's name where nothing varies."""
        words = []
        for key, value in zip(self.keys, setting, strict=True):
            if value != OPEN:
                words.append(f"{key_name(key)}={value}")
        return ", ".join(words) or self.runs()[0].method

    def parameters(self, setting: Setting, task: str | None = None) -> float:
        """Return the mean adapter parameters of a setting's runs, of one task or of all."""
        tasks = self.tasks if task is None else [task]
        sizes: list[float] = []
        for name in tasks:
            sizes.extend(run.adapter_parameters for run in self.cell(setting, name))
        return sum(sizes) / len(sizes)


def key_name(key: str) -> str:
    """Return a setting's name as a heading shows it: `method` for `method.name`."""
    return key.removesuffix(".name")


def build_table(runs: Sequence[Run], last: bool = False) -> Table:
    """Return the runs in their cells.

    Raises:
        UserError: two runs have the same settings, task and seed.
    """
    keys = varied_settings(runs)
    cells: dict[tuple[Setting, str], dict[int, Run]] = {}
    for run in runs:
        setting = tuple(run.settings.get(key, OPEN) for key in keys)
        cell = cells.setdefault((setting, run.task), {})
        if run.seed in cell:
            raise UserError(
                f"{cell[run.seed].folder} and {run.folder} are the same run "
                f"(settings, task, seed {run.seed}). "
                "Move one away, or report on one sweep's folder"
            )
        cell[run.seed] = run
    settings = sorted({setting for setting, _ in cells}, key=_sorting_key)
    return Table(
        keys=keys,
        tasks=sorted({task for _, task in cells}),
        metrics={run.task: run.metric for run in runs},
        cells=cells,
        last=last,
        settings=settings,
        implied=implied_settings(runs, keys),
    )


def _sorting_key(setting: Setting) -> list[tuple[bool, Any]]:
    """Return what sorts settings: numbers by value before text by its letters."""
    # Python compares no number with a text.
    return [(isinstance(value, str), value) for value in setting]


def find_setting(table: Table, wanted: str | None) -> Setting:
    """Return the setting that KEY=VALUE names; the first one where nothing is wanted.

    Raises:
        UserError: the key does not vary, or no setting has the value.
    """
    if wanted is None:
        return table.settings[0]
    key, _, value = wanted.partition("=")
    columns = {key_name(name): column for column, name in enumerate(table.keys)}
    column = columns.get(key_name(key))
    if column is None:
        known = nearest(key, columns or ["nothing"])
        raise UserError(f"--against {wanted}: {key} does not vary here. {known}")
    for setting in table.settings:
        if str(setting[column]) == value:
            return setting
    values = sorted({str(setting[column]) for setting in table.settings})
    raise UserError(f"--against {wanted}: there is {', '.join(values)}")
