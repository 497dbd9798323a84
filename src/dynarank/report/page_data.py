"""What the page's scripts read: rank histories, and configurations without what all runs share.

Histories are embedded in few characters, for a sweep has many of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynarank.report.run_reader import OPEN
from dynarank.report.runs import Run
from dynarank.report.tables import Table
from dynarank.training.rank_map import place

MOST_PRUNINGS = 100
"""Of a run's prunings so many are embedded, evenly chosen, the first and the last among them."""
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
LARGEST_EXACT = 2**53
"""Whole numbers beyond it are not exact in a browser, so they are embedded as text."""


def embedded(table: Table, runs: Sequence[Run]) -> dict[str, Any]:
    """Return layouts of matrices, settings that all runs share, and what is each run's own."""
    shared = shared_settings(runs)
    layouts: dict[tuple[str, ...], int] = {}
    groups = {setting: index for index, setting in enumerate(table.settings)}
    entries = []
    for run in runs:
        setting = table.setting(run)
        entry: dict[str, Any] = {
            "name": f"{run.task}, {table.label(setting)}, seed {run.seed}",
            "task": run.task,
            "group": groups[setting],
            "seed": run.seed,
            "layout": None,
            "command": run.command,
            "own": {key: value for key, value in run.settings.items() if key not in shared},
            "results": _result_lines(run),
        }
        names = tuple(run.prunings[0][1]) if run.prunings else ()
        if names:
            entry["layout"] = layouts.setdefault(names, len(layouts))
            entry.update(history(run))
        entries.append(entry)
    content = {
        "layouts": [layout(names) for names in layouts],
        "shared": shared,
        "runs": entries,
        "start": _start(table, runs),
    }
    return as_json(content)


def _start(table: Table, runs: Sequence[Run]) -> int:
    """Return the number of the run that the page shows at first: one of the best setting."""
    task = table.tasks[0]
    shown = runs[0]
    order = table.order(task)
    if order:
        shown = table.cell(order[0], task)[0]
    return next(index for index, run in enumerate(runs) if run is shown)


def as_json(content: Any) -> Any:
    """Return the content with text for what JSON or a browser's numbers cannot hold."""
    if isinstance(content, dict):
        return {str(key): as_json(value) for key, value in content.items()}
    if isinstance(content, list):
        return [as_json(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return str(content)
    if isinstance(content, int) and abs(content) > LARGEST_EXACT:
        return str(content)
    return content


def shared_settings(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the settings with one value in all runs."""
    shared = dict(runs[0].settings)
    for run in runs[1:]:
        for key in list(shared):
            if run.settings.get(key, OPEN) != shared[key]:
                del shared[key]
    return shared


def history(run: Run) -> dict[str, Any]:
    """Return the steps, and the ranks after each pruning.

    Ranks below 36 take a digit a matrix; where one is larger, they are lists of numbers.
    """
    names = list(run.prunings[0][1])
    count = len(run.prunings)
    places = np.linspace(0, count - 1, min(count, MOST_PRUNINGS))
    kept = [run.prunings[index] for index in np.unique(places.round().astype(int))]
    steps = []
    frames = []
    for step, ranks in kept:
        steps.append(step)
        frames.append([ranks.get(name, 0) for name in names])
    coded: list[Any] = list(frames)
    if max(map(max, frames)) < len(DIGITS):
        coded = [_as_digits(frame) for frame in frames]
    return {"steps": steps, "ranks": coded, "prunings": count}


def _as_digits(frame: Sequence[int]) -> str:
    return "".join(DIGITS[rank] for rank in frame)


def layout(names: Sequence[str]) -> dict[str, Any]:
    """Return stacks with their matrices and layers, and each name's (stack, row, column)."""
    stacks: dict[str, dict[str, Any]] = {}
    cells = []
    for name in names:
        spot = place(name)
        stack = stacks.setdefault(spot.stack, {"name": spot.stack, "matrices": [], "layers": 0})
        if spot.matrix not in stack["matrices"]:
            stack["matrices"].append(spot.matrix)
        stack["layers"] = max(stack["layers"], spot.layer + 1)
        row = stack["matrices"].index(spot.matrix)
        cells.append([list(stacks).index(spot.stack), row, spot.layer])
    return {"names": list(names), "stacks": list(stacks.values()), "cells": cells}


def _result_lines(run: Run) -> dict[str, Any]:
    """Return metrics.json flattened, without the folder."""
    lines: dict[str, Any] = {}
    for key, value in run.results.items():
        if isinstance(value, dict):
            for name, one in value.items():
                lines[f"{key}.{name}"] = one
        elif key != "output_dir":
            lines[key] = value
    return lines
