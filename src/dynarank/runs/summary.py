"""A finished run on the screen: one table, and where its files lie."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dynarank.config.command_line import program_to_print, typed_setting
from dynarank.run_folder import (
    ADAPTER,
    HISTORY,
    OVER_BUDGET,
    PREDICTION_LINES,
    PREDICTIONS,
    RANK_MAP,
    TENSORBOARD,
    TRACKER,
)
from dynarank.runs.results import Results


def print_summary(results: Results) -> None:
    """Print the run in one table, and the places of its files."""
    table = Table(
        title=f"{results.task} / {results.method} / {results.model}",
        show_header=False,
        title_justify="left",
    )
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in summary_rows(results).items():
        table.add_row(label, text)
    console = Console()
    console.print(table)
    for line in [*places(results), *collapse_warning(results), *next_steps(results)]:
        # Commands and paths are copied from here, so rich must not break or mark them.
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def summary_rows(results: Results) -> Mapping[str, str]:
    """Return the label and the text of each line of the summary."""
    rows = {}
    selected = results.selected
    state = "at budget" if results.at_budget else "BUDGET NOT REACHED"
    for name, value in results.metrics.items():
        rows[name] = f"{value:.4f}"
        if name == selected["metric"]:
            rows[name] += f" (best, epoch {selected['epoch']}, {state})"
        if name in results.baseline_metrics and results.baseline is not None:
            baseline = results.baseline_metrics[name]
            rows[name] += f"; {results.baseline['name']} {baseline:.4f}"
    for name, value in (results.test_metrics or {}).items():
        rows[f"test {name}"] = f"{value:.4f} ({results.test_rows:,} rows, once)"
    if results.components_target is not None:
        rows["components"] = f"{results.components_kept} of {results.components_target} budgeted"
        ranks = results.ranks.values()
        rows["ranks"] = (
            f"{min(ranks)} to {max(ranks)} in {len(ranks)} matrices "
            f"(budget: {results.budget_target} on average)"
        )
    share = 100 * results.adapter_parameters / results.model_parameters
    rows["parameters"] = (
        f"{results.adapter_parameters:,} adapter ({share:.2f} % of the model), "
        f"{results.head_parameters:,} head"
    )
    rows["steps"] = f"{results.total_steps:,} in {results.seconds:.0f} s"
    return rows


def next_steps(results: Results) -> list[str]:
    """Return the commands that a finished run is for, a line each, as they are typed here."""
    shown = _shown(Path(results.output_dir))
    program, folder = program_to_print(), shlex.quote(str(shown))
    if not results.at_budget:
        # A report leaves such a run out, and predict refuses it unless it is told otherwise.
        place = typed_setting("hydra.run.dir", shown)
        steps = [f"Next: the same command with resume=auto {place} and a longer trainer.max_time"]
        if (Path(results.output_dir) / OVER_BUDGET).is_dir():
            more = "--over-budget --input FILE --output FILE"
            steps.append(f"      {program} predict {folder} {more}")
        return steps
    return [
        f"Next: {program} report {folder}",
        f"      {program} predict {folder} --input FILE --output FILE",
    ]


def _shown(folder: Path) -> Path:
    """Return a folder relative to the working directory where it is below."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def collapse_warning(results: Results) -> list[str]:
    """Return what to say, a line each, where a model predicts one thing for every row."""
    if results.collapsed is None:
        return []
    return [
        f"Nothing was learned: the model predicts one thing for {results.collapsed}.",
        "Another optimizer.lr may help (docs/troubleshooting.md says when higher, and when lower), "
        "a lower optimizer.head_lr, another seed, or more epochs.",
    ]


def places(results: Results) -> list[str]:
    """Return where each file lies, a line each; relative to the working directory where below."""
    folder = Path(results.output_dir)
    shown = _shown(folder)
    meanings = {
        ADAPTER: "the adapter, for PEFT and for dynarank predict",
        OVER_BUDGET: "the adapter, larger than its budget",
        RANK_MAP: "the rank of every matrix",
        PREDICTIONS: "answers",
        PREDICTION_LINES: "texts generated",
        HISTORY: "history",
        TRACKER: f"the same, to browse: wandb leet {shown / TRACKER}",
        TENSORBOARD: f"the same, to browse: tensorboard --logdir {shown}",
    }
    lines = [f"{shown}/"]
    for name, meaning in meanings.items():
        if (folder / name).exists():
            lines.append(f"  {name:<17} {meaning}")
    return lines
