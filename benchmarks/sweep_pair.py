"""Time a sweep of two runs: two commands, the sweep's runs one after another, and side by side.

    python benchmarks/sweep_pair.py

The runs are short (tweets, 640 rows), as in a search; what a sweep saves is imports and weights.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

COMMON = (
    *("task=tweets", "model=minilm", "budget=r2", "logger=none", "trainer.epochs=1"),
    *("task.max_train_rows=640", "task.max_validation_rows=200", "trainer.accelerator=cpu"),
    "budget.interval=5",
)
SEEDS = ("1", "2")


def _seconds(*arguments: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "dynarank", "train", *arguments, *COMMON]
        # Runs go to the folder that they are started in.
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(done.stderr[-2000:])
        return time.perf_counter() - start


def sweep_pair(rounds: int = 3) -> list[str]:
    """Return the table's lines."""
    both = f"seed={','.join(SEEDS)}"
    ways = {
        "two commands": lambda: sum(_seconds(f"seed={seed}") for seed in SEEDS),
        "a sweep, one after another": lambda: _seconds("-m", both, "hydra.launcher.n_jobs=1"),
        "a sweep, two side by side": lambda: _seconds("-m", both, "hydra.launcher.n_jobs=2"),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, measure in ways.items():
            found[name].append(measure())
    base = statistics.median(found["two commands"])
    lines = ["| two short runs | s (least to most) | of two commands |", "| --- | --- | --- |"]
    for name, times in found.items():
        median = statistics.median(times)
        spread = f"{median:.1f} ({min(times):.1f} to {max(times):.1f})"
        lines.append(f"| {name} | {spread} | {median / base:.2f} |")
    return lines


if __name__ == "__main__":
    print("\n".join(sweep_pair()))
