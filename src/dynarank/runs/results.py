"""What a finished run leaves beside its adapter: metrics.json, ranks.json and the rank map."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dynarank.checkpoints.identity import package_versions
from dynarank.durable_files import json_text, without_nan, write_json, write_text
from dynarank.run_folder import (
    HISTORY,
    METRICS,
    RANK_HISTORY,
    RANKS,
    read_ranks,
    read_record,
    selected_score,
)
from dynarank.runs.own_files import announce_files, record_digests
from dynarank.training.module import FineTuning
from dynarank.training.rank_map import RANK_MAP_FILES, rank_map_title, save_rank_map


@dataclass
class Results:
    """A finished run, as metrics.json holds it."""

    task: str
    method: str
    model: str
    seed: int
    metrics: dict[str, float]
    """Validation scores of the selected epoch, which is at budget."""
    selected: dict[str, Any]
    """Which epoch and step was selected, by which metric."""
    last: dict[str, float]
    """Validation scores of the last epoch."""
    at_budget: bool
    """Whether the ranks were frozen. If not, the run ended early, and its adapter is too large."""
    budget_target: float | None
    components_target: int | None
    components_kept: int
    adapter_parameters: int
    head_parameters: int
    model_parameters: int
    total_steps: int
    lr: float
    epochs: int
    batch_size: int
    seconds: float
    """Of work, over all starts."""
    output_dir: str
    ranks: dict[str, int] = field(repr=False)
    """Kept rank by matrix, in model order; stands in ranks.json."""
    resumed_at: list[int] = field(default_factory=list)
    """Steps at which the run went on from a checkpoint."""
    inexact_resume: list[str] = field(default_factory=list)
    """What differed then, where resume.allow_inexact let it."""
    baseline: dict[str, Any] | None = None
    """What a model scores that has learned nothing, {"name": ..., "metrics": {...}}; None where
    the task knows no such score."""
    collapsed: str | None = None
    """The one prediction that all validation rows share, in words; None where they differ."""
    test_metrics: dict[str, float] | None = None
    """Scores of the test rows, once, by the selected weights; None where none were asked for."""
    test_baseline: dict[str, Any] | None = None
    """The baseline of the test rows."""
    test_rows: int = 0
    versions: dict[str, str] = field(default_factory=package_versions)

    @property
    def score(self) -> float:
        """Return the selecting metric's value at the selected epoch."""
        return selected_score({"metrics": self.metrics, "selected": self.selected})

    @property
    def baseline_metrics(self) -> dict[str, float]:
        """Return the baseline's scores by metric; empty where there is none."""
        return {} if self.baseline is None else dict(self.baseline["metrics"])


def read_results(folder: Path) -> Results:
    """Return the results of a finished run's folder.

    Raises:
        UserError: metrics.json or ranks.json is damaged.
    """
    return Results(**read_record(folder), ranks=read_ranks(folder))


def write_results(
    results: Results, largest_rank: int, history: list[dict[str, Any]], folder: Path
) -> None:
    """Write the ranks, where the method has any, and metrics.json last, for it says "finished".

    Args:
        results: of the run.
        largest_rank: the end of the rank map's scale of colours.
        history: the step and the ranks after every pruning.
        folder: the run's.
    """
    record = asdict(results)
    ranks = record.pop("ranks")
    # It lies there already, and is named for its digest to be recorded.
    announce_files(folder, [HISTORY])
    if ranks:
        announce_files(folder, [RANKS, RANK_HISTORY, *RANK_MAP_FILES])
        write_json(folder / RANKS, ranks)
        write_json(folder / RANK_HISTORY, history)
        save_rank_map(folder, ranks, largest_rank, title_of(results))
    text = json_text(record)
    # Before the file itself: once that is there, the run counts as finished, and is checked by it.
    record_digests(folder, {METRICS: hashlib.sha256(text.encode()).hexdigest()})
    write_text(folder / METRICS, text)


def title_of(results: Results) -> str:
    """Return the title of a run's rank map: model, task, method, budget, seed and score."""
    return rank_map_title(
        model=results.model,
        task=results.task,
        method=results.method,
        seed=results.seed,
        budget=results.budget_target,
        metric=results.selected["metric"],
        score=results.score,
    )


def gather_artifacts(module: FineTuning) -> dict[str, Any]:
    """Return the content of the task's own files (predictions) by name, of the last validation.

    All ranks must ask, because the content is made of all ranks' rows.
    """
    artifacts: dict[str, Any] = {}
    for split, scores in zip(module.task.validation, module.scores, strict=True):
        artifacts.update(module.task.artifacts(split, scores))
    return artifacts


def write_artifacts(artifacts: Mapping[str, Any], folder: Path) -> None:
    """Write the task's own files: as JSON, or for a name in .jsonl with a line for each item."""
    announce_files(folder, artifacts)
    for name, content in artifacts.items():
        if name.endswith(".jsonl"):
            lines = [json.dumps(without_nan(item), ensure_ascii=False) for item in content]
            write_text(folder / name, "".join(line + "\n" for line in lines))
        else:
            write_json(folder / name, content)
