"""Methods on small talk with SmolLM2-135M, each at its own tuned rate.

    python benchmarks/small_talk/compare.py RUNS_DIR benchmarks/small_talk/runs.csv

Each method is tried at three rates or more, a factor of about three apart, with one seed. The best
of them is then run with other seeds. Runs that RUNS_DIR holds already are not made again. The table
of all runs is written, and the means are printed. A run takes about 80 s of one idle core that
computes in bfloat16.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

RATES = {
    "r4": {
        "lora": ("1e-3", "3e-3", "1e-2"),
        "dora": ("3e-3", "1e-2", "3e-2"),
        # A fourth rate shows that the best of three is no edge, here and below.
        "dynarank": ("3e-3", "1e-2", "3e-2", "1e-1"),
        "dynarank_alpha_8": ("1e-3", "3e-3", "1e-2"),
    },
    "r0_25": {
        "lora_alpha_1": ("3e-3", "1e-2", "3e-2", "1e-1"),
        "dynarank": ("1e-2", "3e-2", "1e-1"),
    },
}
"""The rates that a method is tried at, by budget."""
# An earlier form of the recipe, by the name that the bench has for it.
EARLIER_FORM = ["method.init=lora", "method.orthogonality=0", "method.alpha=8"]
GIVEN = {
    "dynarank_alpha_8": ["method=dynarank", *EARLIER_FORM],
    "lora_alpha_1": ["method=lora", "method.alpha=1"],
}
"""What a method that is no `method=` of its own is given."""
TUNING_SEED = 1
SEEDS = (2,)
SETTINGS = (
    "experiment=quickstart_llm",
    "logger=none",
    "trainer.precision=bf16-mixed",
    "task.max_train_rows=96",
    "task.batch_size=4",
)
COLUMNS = (
    "part",
    "budget",
    "method",
    "rate",
    "seed",
    "perplexity",
    "token_accuracy",
    "parameters",
    "steps",
)


def main() -> None:
    """Make the runs that are missing, and write the table."""
    runs, table = Path(sys.argv[1]), Path(sys.argv[2])
    rows = []
    for budget, methods in RATES.items():
        for method, rates in methods.items():
            rows += tuned(runs, budget, method, rates)
    write(table, rows)


def tuned(runs: Path, budget: str, method: str, rates: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a method: of all its rates, and of its best with other seeds."""
    tried = []
    for rate in rates:
        tried.append(scored(runs, "tuning", budget, method, rate, TUNING_SEED))
    best = min(tried, key=lambda row: row["perplexity"])["rate"]
    if best in (rates[0], rates[-1]):
        print(f"{budget} {method}: the best rate, {best}, is at the edge of those tried")
    compared = [scored(runs, "comparison", budget, method, best, seed) for seed in SEEDS]
    perplexity = mean(row["perplexity"] for row in compared)
    print(f"{budget} {method} at {best}: perplexity {perplexity:.2f}")
    return [*tried, *compared]


def scored(runs: Path, part: str, budget: str, method: str, rate: str, seed: int) -> dict[str, Any]:
    """Return the row of a run, which is made if it is not there."""
    folder = runs / f"{budget}_{method}_{rate}_{seed}"
    if not (folder / "metrics.json").is_file():
        given = [f"budget={budget}", f"optimizer.lr={rate}", f"seed={seed}"]
        given += GIVEN.get(method, [f"method={method}"])
        command = [sys.executable, "-m", "dynarank", "train", *SETTINGS, *given]
        subprocess.run([*command, f"hydra.run.dir={folder}"], check=True)
    results = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert results["at_budget"]
    return {
        "part": part,
        "budget": budget,
        "method": method,
        "rate": rate,
        "seed": seed,
        "perplexity": round(results["metrics"]["perplexity"], 4),
        "token_accuracy": round(results["metrics"]["token_accuracy"], 5),
        "parameters": results["adapter_parameters"],
        "steps": results["total_steps"],
    }


def write(table: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the runs, a line each."""
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
