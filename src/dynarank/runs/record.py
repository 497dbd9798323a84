"""What a run leaves: metrics.json, ranks.json, the rank map, and one table to read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.checkpoints.storage import write_durably
from dynarank.run_folder import ORIGIN
from dynarank.training.rank_map import draw_rank_map

if TYPE_CHECKING:
    from dynarank.tasks.base import Task
    from dynarank.config.schema import TrainConfig
    from dynarank.pretrained.hub import Source
    from dynarank.training.module import FineTuning

PACKAGES = (
    "dynarank",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "datasets",
    "torchmetrics",
    "hydra-core",
)


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
    """Whether the ranks were frozen; if not, the run ended early and nothing was exported."""
    budget_target: int | None
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
    output_dir: str
    ranks: dict[str, int] = field(repr=False)
    resumed_at: list[int] = field(default_factory=list)
    """Steps at which the run went on from a checkpoint."""
    inexact_resume: list[str] = field(default_factory=list)
    """What differed then, where resume.allow_inexact let it."""
    versions: dict[str, str] = field(default_factory=lambda: package_versions())

    @property
    def score(self) -> float:
        """The selecting metric's value at the selected epoch."""
        return self.metrics[self.selected["metric"]]


def package_versions() -> dict[str, str]:
    """Versions of what shapes the numbers."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def read_results(folder: Path) -> Results:
    """The results of a finished run's folder."""
    record = json.loads((folder / "metrics.json").read_text())
    ranks = folder / "ranks.json"
    return Results(**record, ranks=json.loads(ranks.read_text()) if ranks.is_file() else {})


def write_results(
    results: Results, largest_rank: int, history: list[dict[str, Any]], folder: Path
) -> None:
    """For a method with ranks ranks.json, rank_history.json and rank_map.png; metrics.json last, for it says "finished"."""
    record = asdict(results)
    if ranks := record.pop("ranks"):
        _write_json(folder / "ranks.json", ranks)
        _write_json(folder / "rank_history.json", history)
        draw_rank_map(ranks, largest_rank, f"{results.task}, {results.method}").savefig(
            folder / "rank_map.png", dpi=150
        )
    _write_json(folder / "metrics.json", record)


def gather_artifacts(module: FineTuning) -> dict[str, Any]:
    """The task's own files (predictions), by name, of the last validation; all ranks must ask, for it is all ranks' rows."""
    pairs = zip(module.task.validation, module.scores, strict=True)
    return {
        name: one
        for split, scores in pairs
        for name, one in module.task.artifacts(split, scores).items()
    }


def write_artifacts(artifacts: Mapping[str, Any], folder: Path) -> None:
    """The task's own files: JSON, or for .jsonl a line an item."""
    for name, content in artifacts.items():
        if name.endswith(".jsonl"):
            (folder / name).write_text(
                "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in content)
            )
        else:
            _write_json(folder / name, content)


def write_origin(folder: Path, config: TrainConfig, task: Task[Any], source: Source) -> None:
    """Beside an adapter, what `dynarank.commands.predict` needs to use it: the task, and where the base model came from."""
    model = {**asdict(config.model), "found": source.path}
    parts: dict[str, Any] = {
        "task": task.recorded_config(),
        "method": config.method,
        "budget": config.budget,
        "dem": config.dem,
    }
    origin = {
        "model": model,
        **{name: asdict(part) for name, part in parts.items()},
        "versions": package_versions(),
    }
    _write_json(folder / ORIGIN, origin)


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(_plain(content), indent=2) + "\n"
    write_durably(path, lambda file: file.write(text.encode()))


def _plain(content: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, list) else content


def print_summary(results: Results) -> None:
    """The run in one table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{results.task} / {results.method} / {results.model}",
        show_header=False,
        title_justify="left",
    )
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in summary_rows(results).items():
        table.add_row(name, text)
    console = Console()
    console.print(table)
    for line in places(results):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def summary_rows(results: Results) -> Mapping[str, str]:
    """Label and text of each line of the summary."""
    rows = {}
    when = "at budget" if results.at_budget else "BUDGET NOT REACHED"
    for name, value in results.metrics.items():
        mark = (
            f" (best, epoch {results.selected['epoch']}, {when})"
            if name == results.selected["metric"]
            else ""
        )
        rows[name] = f"{value:.4f}{mark}"
    if results.components_target is not None:
        rows["components"] = f"{results.components_kept} of {results.components_target} budgeted"
        ranks = results.ranks.values()
        rows["ranks"] = (
            f"{min(ranks)} to {max(ranks)} in {len(ranks)} matrices (budget: {results.budget_target} on average)"
        )
    share = 100 * results.adapter_parameters / results.model_parameters
    rows["parameters"] = (
        f"{results.adapter_parameters:,} adapter ({share:.2f} % of the model), {results.head_parameters:,} head"
    )
    rows["steps"] = f"{results.total_steps:,} in {results.seconds:.0f} s"
    return rows


def places(results: Results) -> list[str]:
    """Where everything lies, a line each; relative to the working directory where it is below."""
    folder = Path(results.output_dir)
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    kinds = {
        "adapter": "the adapter, for PEFT and for dynarank.commands.predict",
        "rank_map.png": "the rank of every matrix",
        "predictions.json": "answers",
        "predictions.jsonl": "texts generated",
        "metrics.csv": "history",
        "wandb": f"the same, to browse: wandb leet {shown / 'wandb'}",
    }
    return [
        f"{shown}/",
        *(f"  {name:<17} {what}" for name, what in kinds.items() if (folder / name).exists()),
    ]
