"""Folders written as runs leave them, with scores and ranks that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MATRICES = [
    f"bert.encoder.layer.{layer}.{matrix}"
    for layer in range(3)
    for matrix in ("query", "key", "output.dense")
]


def write_run(folder: Path, task: str, method: str, seed: int, score: float, **more: Any) -> Path:
    """What the report reads of a run."""
    (folder / ".hydra").mkdir(parents=True)
    alpha = f"  alpha: {more.get('alpha', 8)}\n" if method == "dora" else ""
    lines = f"seed: {seed}\nmethod:\n  name: {json.dumps(method)}\n{alpha}model:\n  name: tiny\n"
    lines += f"task:\n  name: {json.dumps(task)}\n  labels: [a, b]\noutput_dir: {json.dumps(str(folder))}\n"
    (folder / ".hydra" / "config.yaml").write_text(lines)
    results = {"task": task, "method": method, "model": "tiny", "seed": seed, "metrics": {"accuracy": score},
               "last": {"accuracy": score - 0.1}, "selected": {"metric": "accuracy"}, "total_steps": 40,
               "adapter_parameters": more.get("parameters", 100), "at_budget": more.get("at_budget", True)}  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(results))
    (folder / "metrics.csv").write_text(f"step,val/accuracy\n1,0.4\n2,{score}\n")
    (folder / "ranks.json").write_text(
        json.dumps(more.get("ranks", {"layer.0.a": 1, "layer.0.b": 2, "layer.0.c": 3}))
    )
    return folder


def write_history(folder: Path, prunings: int, seed: int, largest: int = 4) -> list[dict[str, Any]]:
    """Adds what a method with ranks leaves: rank_history.json, ranks.json, and a longer metrics.csv."""
    history = [
        {"step": 4 * (1 + at), "ranks": {name: (index * 7 + at * (1 + seed) + seed) % (largest + 1)
                                         for index, name in enumerate(MATRICES)}}
        for at in range(prunings)
    ]  # fmt: skip
    (folder / "rank_history.json").write_text(json.dumps(history))
    (folder / "ranks.json").write_text(json.dumps(history[-1]["ranks"]))
    lines = [
        "step,train/loss,val/loss,val/accuracy,budget/scheduled,budget/nonzero,score/q05,score/q25,score/q50,score/q75,score/q95"
    ]
    for step in range(1, 41):
        validated = f"{1 / step:.3f},{0.5 + step / 100:.3f}" if step % 10 == 0 else ","
        lines.append(
            f"{step},{2 / step:.4f},{validated},{4 - step / 20:.3f},{9 * (4 - step / 20):.1f},0.1,0.3,0.5,0.7,0.9"
        )
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return history


def write_overrides(folder: Path, *overrides: str) -> None:
    """What the run was given on its command line."""
    (folder / ".hydra" / "overrides.yaml").write_text(
        "".join(f"- {json.dumps(one)}\n" for one in overrides)
    )
