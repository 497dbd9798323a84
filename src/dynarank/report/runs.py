"""Runs as their folders tell them: configuration, scores, ranks, history. The tracker is never read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

FIRST = ("model.name", "method.name", "budget.target", "budget.init", "dem.eta")
"""Settings that name a row before any others do."""
IGNORED = ("seed", "output_dir", "sweep.", "hub.", "logger.", "hydra.", "trainer.log_every", "trainer.workers")
"""Settings that do not make runs different."""
OPEN = "(none)"


@dataclass(frozen=True)
class Run:
    """A finished run's folder."""

    folder: Path
    settings: dict[str, Any]
    """Its configuration, flattened: 'budget.target': 2."""
    results: dict[str, Any]
    """Its metrics.json."""

    @property
    def seed(self) -> int:
        return int(self.results["seed"])

    @property
    def metric(self) -> str:
        """The metric that selects."""
        return str(self.results["selected"]["metric"])

    def score(self, last: bool = False) -> float:
        """The selecting metric at the selected epoch, or at the last one."""
        value = self.results["last" if last else "metrics"][self.metric]
        return float("nan") if value is None else float(value)

    @cached_property
    def ranks(self) -> dict[str, int]:
        """Kept rank by matrix; empty for a method without ranks."""
        return dict(_json(self.folder / "ranks.json")) if (self.folder / "ranks.json").is_file() else {}

    @cached_property
    def history(self) -> pd.DataFrame:
        """metrics.csv."""
        import pandas as pd

        return pd.read_csv(self.folder / "metrics.csv")


def read_runs(places: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """All finished runs in or below the folders, and a line for each that is not: those that are over budget, too.

    Raises:
        UserError: a folder does not exist, or none holds a finished run.
    """
    runs, unfinished = [], []
    for folder in _folders(places):
        if not (folder / "metrics.json").is_file():
            unfinished.append(f"{folder}: not finished (no metrics.json)")
            continue
        results = _json(folder / "metrics.json")
        if not results["at_budget"]:
            unfinished.append(f"{folder}: ended before its ranks were frozen, so it is over budget and left out")
            continue
        runs.append(Run(folder, _settings(folder), results))
    if not runs:
        raise UserError(f"no finished run in {', '.join(map(str, places))}{_listed(unfinished)}")
    return runs, unfinished


def _listed(lines: Sequence[str]) -> str:
    return "".join(f"\n  {line}" for line in lines)


def _folders(places: Sequence[Path]) -> Iterator[Path]:
    """Run folders, each once: those with a .hydra/config.yaml."""
    seen = set()
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place}: there is no such folder. Give a run's folder, a sweep's, or outputs/")
        for config in sorted(place.rglob(".hydra/config.yaml")):
            folder = config.parent.parent
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is damaged ({error.msg} at line {error.lineno}). Run it again, or move it away") from None


def _settings(folder: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return dict(_flat(OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml")), ""))


def _flat(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, OPEN if node is None else str(node) if isinstance(node, list) else node


def varied(runs: Sequence[Run]) -> list[str]:
    """The settings, task and seed apart, by which runs differ: as few as tell all of them apart.

    A setting that follows from those before it (a method's own options from its name, a task's from the task) is left
    out.
    """
    chosen: list[str] = []
    for key in _candidates(runs):
        told: dict[tuple[Any, ...], Any] = {}
        for run in runs:
            known = (run.results["task"], *(run.settings.get(one, OPEN) for one in chosen))
            if told.setdefault(known, run.settings.get(key, OPEN)) != run.settings.get(key, OPEN):
                chosen.append(key)
                break
    return chosen


def implied(runs: Sequence[Run], chosen: Sequence[str]) -> list[str]:
    """Settings beside the chosen ones that differ too, though they follow from them in these runs."""
    of_kinds = ("method.", "model.", "budget.init")
    keys = [key for key in _candidates(runs) if key not in chosen and not key.startswith(of_kinds)]
    return [key for key in keys if len({run.settings.get(key, OPEN) for run in runs}) > 1]


def _candidates(runs: Sequence[Run]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    candidates = [key for key in keys if not key.startswith(IGNORED) and not key.startswith("task.")]
    return sorted(candidates, key=lambda key: (FIRST.index(key) if key in FIRST else len(FIRST), key))
