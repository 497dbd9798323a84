"""Runs that the tests of predict, evaluate and export use, and their commands in short."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from tiny import configure

from dynarank.commands.predict import main
from dynarank.runs.run import run

FAST = ("trainer.epochs=1", "budget.interval=1", "optimizer.lr=0.01")


def trained(folder: Path, hub: Path, *overrides: str) -> Path:
    """Train a run into the folder, and return the folder."""
    run(configure(folder, hub, *FAST, *overrides))
    return folder


def predict(source: Path, rows: Path | str, output: Path, hub: Path, *more: str) -> None:
    """Run the command predict."""
    files = ["--input", str(rows), "--output", str(output)]
    main([str(source), *files, "--hub-root", str(hub), *more])


def records(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of predictions."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
