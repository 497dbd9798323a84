"""What the page's scripts read: rank histories in few characters, and configurations without what all runs share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynarank.report.findings import standing_order
from dynarank.report.runs import OPEN, Run
from dynarank.report.tables import Table
from dynarank.training.rank_map import place

MOST_PRUNINGS = 100
"""Of a run's prunings, so many are embedded, evenly chosen, the first and the last among them."""
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def embedded(table: Table, runs: Sequence[Run]) -> dict[str, Any]:
    """The page's data: layouts of matrices, settings that all runs share, and each run's own."""
    shared = shared_settings(runs)
    layouts: dict[tuple[str, ...], int] = {}
    entries = []
    for run in runs:
        names = tuple(run.prunings[0][1]) if run.prunings else ()
        entries.append(
            {
                "name": f"{run.results['task']}, {table.label(table.setting(run))}, seed {run.seed}",
                "task": str(run.results["task"]),
                "group": table.settings.index(table.setting(run)),
                "seed": run.seed,
                "layout": layouts.setdefault(names, len(layouts)) if names else None,
                **(history(run) if names else {}),
                "command": run.command,
                "own": {key: value for key, value in run.settings.items() if key not in shared},
                "results": _results(run),
            }
        )
    best = standing_order(table, table.tasks[0])
    start = next(iter(table.cells[best[0], table.tasks[0]].values())) if best else runs[0]
    return _plain(
        {
            "layouts": [layout(names) for names in layouts],
            "shared": shared,
            "runs": entries,
            "start": list(runs).index(start),
        }
    )


def _plain(content: Any) -> Any:
    """JSON has no NaN and no infinity: their names stand for them."""
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_plain(value) for value in content]
    return str(content) if isinstance(content, float) and not math.isfinite(content) else content


def shared_settings(runs: Sequence[Run]) -> dict[str, Any]:
    """Settings with one value in all runs."""
    first = runs[0].settings
    return {
        key: value
        for key, value in first.items()
        if all(run.settings.get(key, OPEN) == value for run in runs[1:])
    }


def history(run: Run) -> dict[str, Any]:
    """Steps and ranks after each pruning: a digit a matrix where ranks stay below 36, a list of numbers where not."""
    names = list(run.prunings[0][1])
    count = len(run.prunings)
    kept = np.unique(np.linspace(0, count - 1, min(count, MOST_PRUNINGS)).round().astype(int))
    frames = [[run.prunings[index][1].get(name, 0) for name in names] for index in kept]
    largest = max(max(frame) for frame in frames)
    coded: list[Any] = (
        ["".join(DIGITS[rank] for rank in frame) for frame in frames]
        if largest < len(DIGITS)
        else frames
    )
    return {"steps": [run.prunings[index][0] for index in kept], "ranks": coded, "prunings": count}


def layout(names: Sequence[str]) -> dict[str, Any]:
    """Stacks with their matrices and number of layers, and each name's (stack, row, column)."""
    spots = [place(name) for name in names]
    stacks: dict[str, dict[str, Any]] = {}
    cells = []
    for spot in spots:
        stack = stacks.setdefault(spot.stack, {"name": spot.stack, "matrices": [], "layers": 0})
        if spot.matrix not in stack["matrices"]:
            stack["matrices"].append(spot.matrix)
        stack["layers"] = max(stack["layers"], spot.layer + 1)
        cells.append(
            [list(stacks).index(spot.stack), stack["matrices"].index(spot.matrix), spot.layer]
        )
    return {"names": list(names), "stacks": list(stacks.values()), "cells": cells}


def _results(run: Run) -> dict[str, Any]:
    """metrics.json in lines, flattened; the folder and what the table says already are left out."""
    lines: dict[str, Any] = {}
    for key, value in run.results.items():
        if isinstance(value, dict):
            lines |= {f"{key}.{name}": one for name, one in value.items()}
        elif key != "output_dir":
            lines[key] = value
    return lines
