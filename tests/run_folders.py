"""Folders written as runs leave them, with scores and ranks that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

MATRICES = [
    f"bert.encoder.layer.{layer}.{matrix}"
    for layer in range(3)
    for matrix in ("query", "key", "output.dense")
]


TITLES = {"cola": "CoLA", "qqp": "QQP", "rte": "RTE"}
SHOWN_METRICS = {"qqp": ["accuracy", "f1"], "xsum": ["rouge1", "rouge2", "rougeL"]}


def write_run(folder: Path, task: str, method: str, seed: int, score: float, **more: Any) -> Path:
    """Write what the report reads of a run.

    `more` may hold alpha, parameters, at_budget, ranks, and `results`, fields of metrics.json, and
    `settings`, of the task.
    """
    (folder / ".hydra").mkdir(parents=True)
    method_settings = {"name": method}
    if method == "dora":
        method_settings["alpha"] = more.get("alpha", 8)
    task_settings: dict[str, Any] = {"name": task, "labels": ["a", "b"]}
    task_settings |= more.get("settings", {})
    if task in TITLES:
        task_settings["title"] = TITLES[task]
    if task in SHOWN_METRICS:
        task_settings["shown"] = SHOWN_METRICS[task]
    config = {
        "seed": seed,
        "method": method_settings,
        "model": {"name": "tiny"},
        "task": task_settings,
        "output_dir": str(folder),
    }
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    results = {
        "task": task,
        "method": method,
        "model": "tiny",
        "seed": seed,
        "metrics": {"accuracy": score},
        "last": {"accuracy": score - 0.1},
        "selected": {"metric": "accuracy"},
        "total_steps": 40,
        "adapter_parameters": more.get("parameters", 100),
        "at_budget": more.get("at_budget", True),
        **more.get("results", {}),
    }
    (folder / "metrics.json").write_text(json.dumps(results))
    (folder / "metrics.csv").write_text(f"step,val/accuracy\n1,0.4\n2,{score}\n")
    ranks = more.get("ranks", {"layer.0.a": 1, "layer.0.b": 2, "layer.0.c": 3})
    (folder / "ranks.json").write_text(json.dumps(ranks))
    return folder


def write_history(folder: Path, prunings: int, seed: int, largest: int = 4) -> list[dict[str, Any]]:
    """Add what a method with ranks leaves: rank_history.json, ranks.json, and a longer
    metrics.csv."""
    history = []
    for number in range(prunings):
        ranks = {}
        for index, name in enumerate(MATRICES):
            ranks[name] = (index * 7 + number * (1 + seed) + seed) % (largest + 1)
        history.append({"step": 4 * (1 + number), "ranks": ranks})
    (folder / "rank_history.json").write_text(json.dumps(history))
    (folder / "ranks.json").write_text(json.dumps(history[-1]["ranks"]))
    quantiles = ",".join(f"score/q{level:02d}" for level in (5, 25, 50, 75, 95))
    lines = [f"step,train/loss,val/loss,val/accuracy,budget/scheduled,budget/nonzero,{quantiles}"]
    for step in range(1, 41):
        validated = f"{1 / step:.3f},{0.5 + step / 100:.3f}" if step % 10 == 0 else ","
        budget = 4 - step / 20
        scores = "0.1,0.3,0.5,0.7,0.9"
        lines.append(f"{step},{2 / step:.4f},{validated},{budget:.3f},{9 * budget:.1f},{scores}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return history


def write_overrides(folder: Path, *overrides: str) -> None:
    """Write what the run was given on its command line."""
    (folder / ".hydra" / "overrides.yaml").write_text(
        "".join(f"- {json.dumps(one)}\n" for one in overrides)
    )
