"""Runs as their folders tell them: configuration, scores, ranks, history. The tracker is never read."""

from __future__ import annotations

import json
import shlex
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
IGNORED = (
    "seed",
    "output_dir",
    "sweep.",
    "hub.",
    "logger.",
    "hydra.",
    "trainer.log_every",
    "trainer.workers",
)
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
        return (
            dict(_json(self.folder / "ranks.json"))
            if (self.folder / "ranks.json").is_file()
            else {}
        )

    @cached_property
    def prunings(self) -> list[tuple[int, dict[str, int]]]:
        """Optimizer step and rank by matrix after every pruning; the final ranks alone where no history was kept."""
        if (self.folder / "rank_history.json").is_file() and (
            history := _json(self.folder / "rank_history.json")
        ):
            return [(int(one["step"]), dict(one["ranks"])) for one in history]
        return [(int(self.results.get("total_steps", 0)), self.ranks)] if self.ranks else []

    @cached_property
    def history(self) -> pd.DataFrame:
        """metrics.csv."""
        import pandas as pd

        return pd.read_csv(self.folder / "metrics.csv")

    @cached_property
    def overrides(self) -> list[str] | None:
        """What was given on the command line; None where it is not recorded."""
        record = self.folder / ".hydra" / "overrides.yaml"
        if not record.is_file():
            return None
        from omegaconf import OmegaConf

        return [str(one) for one in OmegaConf.load(record)]

    @property
    def command(self) -> str | None:
        """The command that repeats this run alone, for a shell; None where its overrides are not recorded."""
        if self.overrides is None:
            return None
        given = [one for one in self.overrides if not one.lstrip("+").startswith("sweep.")]
        if any(one.lstrip("+").startswith("experiment=") for one in given):
            given.append("hydra.mode=RUN")  # the experiment may be a sweep
        return shlex.join(["python", "train.py", *given])


@dataclass(frozen=True)
class LeftOut:
    """A run's folder that is not reported on."""

    folder: Path
    reason: str
    output: str = ""
    """What a failed run said last."""

    def __str__(self) -> str:
        return f"{self.folder}: {self.reason}"


def read_runs(places: Sequence[Path]) -> tuple[list[Run], list[LeftOut]]:
    """All finished runs in or below the folders, and those that are left out: unfinished, failed, over budget.

    Raises:
        UserError: a folder does not exist, or none holds a finished run.
    """
    runs, left_out = [], []
    for folder in _folders(places):
        if not (folder / "metrics.json").is_file():
            left_out.append(_unfinished(folder))
            continue
        results = _json(folder / "metrics.json")
        if not results["at_budget"]:
            left_out.append(
                LeftOut(
                    folder, "ended before its ranks were frozen, so it is over budget and left out"
                )
            )
            continue
        settings = _settings(folder)
        if "model.name" in settings:
            settings["model.name"] = results[
                "model"
            ]  # in the configuration it may follow from the model's path
        runs.append(Run(folder, settings, results))
    if not runs:
        raise UserError(f"no finished run in {', '.join(map(str, places))}{_listed(left_out)}")
    return runs, left_out


def _unfinished(folder: Path) -> LeftOut:
    if not (folder / "error.txt").is_file():
        return LeftOut(folder, "not finished (no metrics.json)")
    lines = (folder / "error.txt").read_text(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return LeftOut(
        folder, f"failed: {(errors or lines or ['it said nothing'])[-1]}", "\n".join(lines)
    )


def _listed(left_out: Sequence[LeftOut]) -> str:
    return "".join(f"\n  {one}" for one in left_out)


def _folders(places: Sequence[Path]) -> Iterator[Path]:
    """Run folders, each once: those with a .hydra/config.yaml."""
    seen = set()
    for place in places:
        if not place.is_dir():
            raise UserError(
                f"{place}: there is no such folder. Give a run's folder, a sweep's, or outputs/"
            )
        for config in sorted(place.rglob(".hydra/config.yaml")):
            folder = config.parent.parent
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: is damaged ({error.msg} at line {error.lineno}). Run it again, or move it away"
        ) from None


def _settings(folder: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return dict(
        _flat(OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml")), "")
    )


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
    candidates = [
        key for key in keys if not key.startswith(IGNORED) and not key.startswith("task.")
    ]
    return sorted(
        candidates, key=lambda key: (FIRST.index(key) if key in FIRST else len(FIRST), key)
    )
