"""What a run leaves: metrics.json, ranks.json, the rank map, and one table to read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dynarank.report.rank_map import draw_rank_map

PACKAGES = ("dynarank", "torch", "lightning", "transformers", "peft", "datasets", "torchmetrics", "hydra-core")


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


def write_results(results: Results, largest_rank: int, history: list[dict[str, Any]], folder: Path) -> None:
    """metrics.json; for a method with ranks also ranks.json, rank_history.json and rank_map.png."""
    record = asdict(results)
    ranks = record.pop("ranks")
    _write_json(folder / "metrics.json", record)
    if not ranks:
        return
    _write_json(folder / "ranks.json", ranks)
    _write_json(folder / "rank_history.json", history)
    draw_rank_map(ranks, largest_rank, f"{results.task}, {results.method}").savefig(folder / "rank_map.png", dpi=150)


def _write_json(path: Path, content: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(_plain(content), indent=2) + "\n")
    temporary.replace(path)


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

    table = Table(title=f"{results.task} / {results.method} / {results.model}", show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in summary_rows(results).items():
        table.add_row(name, text)
    Console().print(table)


def summary_rows(results: Results) -> Mapping[str, str]:
    """Label and text of each line of the summary."""
    rows = {}
    when = "at budget" if results.at_budget else "BUDGET NOT REACHED"
    for name, value in results.metrics.items():
        mark = f" (best, epoch {results.selected['epoch']}, {when})" if name == results.selected["metric"] else ""
        rows[name] = f"{value:.4f}{mark}"
    if results.components_target is not None:
        rows["components"] = f"{results.components_kept} of {results.components_target} budgeted"
        ranks = results.ranks.values()
        rows["ranks"] = f"{min(ranks)} to {max(ranks)} in {len(ranks)} matrices (budget: {results.budget_target} on average)"
    share = 100 * results.adapter_parameters / results.model_parameters
    rows["parameters"] = (
        f"{results.adapter_parameters:,} adapter ({share:.2f} % of the model), {results.head_parameters:,} head"
    )
    rows["steps"] = f"{results.total_steps:,} in {results.seconds:.0f} s"
    folder = Path(results.output_dir)
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    rows["run"] = str(folder)
    if (folder / "adapter").is_dir():
        rows["adapter"] = str(folder / "adapter")
    if results.ranks:
        rows["rank map"] = str(folder / "rank_map.png")
    if (folder / "wandb").is_dir():
        rows["history"] = f"{folder / 'metrics.csv'}, or: wandb leet {folder / 'wandb'}"
    else:
        rows["history"] = str(folder / "metrics.csv")
    return rows
