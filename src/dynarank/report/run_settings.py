"""By which settings runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynarank.report.run_reader import OPEN
from dynarank.report.runs import Run

FIRST = ("model.name", "method.name", "budget.target", "budget.init", "dem.eta")
"""Settings that name a row before any others do."""
IGNORED = (
    "seed",
    "output_dir",
    "sweep.",
    "hub.",
    "logger.",
    "hydra.",
    "trainer.log_every",
    "trainer.workers",
    "task.name",
    "task.title",
    "task.shown",
    "task.place",
)
"""Settings that do not make runs different. A task is a table's column, and not of a row."""
OF_KINDS = ("method.", "model.", "task.", "budget.init")
"""Settings that always differ where a method, a model, a task or a budget does."""


def varied_settings(runs: Sequence[Run]) -> list[str]:
    """Return as few settings as tell all runs apart; task and seed are not among them.

    A setting that follows from those before it is left out: a method's own options follow from
    the method's name, a task's options from the task.
    """
    chosen: list[str] = []
    for key in _candidates(runs):
        if _adds_a_difference(key, chosen, runs):
            chosen.append(key)
    return chosen


def _adds_a_difference(key: str, chosen: Sequence[str], runs: Sequence[Run]) -> bool:
    """Return whether two runs that are alike in the chosen settings differ in this one.

    In a task's setting only runs of one seed are compared: for each seed a file may lie in another
    folder, as a cluster's jobs have it.
    """
    of_task = key.startswith("task.")
    first_values: dict[tuple[Any, ...], Any] = {}
    for run in runs:
        seed = run.seed if of_task else None
        row = (run.task, seed, *(run.settings.get(name, OPEN) for name in chosen))
        value = run.settings.get(key, OPEN)
        if first_values.setdefault(row, value) != value:
            return True
    return False


def implied_settings(runs: Sequence[Run], chosen: Sequence[str]) -> list[str]:
    """Return the settings that differ along with the chosen ones, and follow from them here."""
    implied = []
    for key in _candidates(runs):
        if key in chosen or key.startswith(OF_KINDS):
            continue
        if len({run.settings.get(key, OPEN) for run in runs}) > 1:
            implied.append(key)
    return implied


def _candidates(runs: Sequence[Run]) -> list[str]:
    """Return the settings that may tell runs apart, in the order in which they name a row.

    A task's come last: where another setting differs along with them, that one names the row.
    """
    names: dict[str, None] = {}
    for run in runs:
        names.update(dict.fromkeys(run.settings))
    candidates = [name for name in names if not name.startswith(IGNORED)]

    def rank(name: str) -> tuple[int, str]:
        other = len(FIRST) + name.startswith("task.")
        return (FIRST.index(name) if name in FIRST else other, name)

    return sorted(candidates, key=rank)
