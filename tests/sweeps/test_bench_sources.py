"""Arms that are given the ranks of another arm's run: on the same task, budget and seed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dynarank.errors import UserError
from dynarank.run_folder import RANKS
from dynarank.sweeps.bench import SEEDS, Cell, append_cell
from dynarank.sweeps.bench_sources import NAMES, given_ranks, write_names
from dynarank.sweeps.bench_tuning import best_rate, is_tuning, pending, source_of

ARMS = ("replayed", "lora_even", "dynarank_alpha_8")


def played() -> list[Cell]:
    """Play the plan to its end; the ranks of a cell tell its seed and its rate."""
    cells: list[Cell] = []
    while cell := next(pending(cells, ["sst2"], [0.25], ARMS), None):
        best = 4e-3 if cell.arm == "lora_even" else 2e-3
        loss = abs(cell.lr - best)
        ranks = f"{cell.seed} {cell.lr * 1e6:.0f}"
        cells.append(replace(cell, score=-loss, loss=loss, ranks=ranks))
    return cells


def test_a_cell_waits_for_the_one_whose_ranks_it_is_given() -> None:
    cells = played()
    first = next(place for place, cell in enumerate(cells) if cell.arm == "replayed")
    assert best_rate(cells[:first], "dynarank_alpha_8", "sst2", 0.25) == 2e-3
    assert {cell.lr for cell in cells if cell.arm == "replayed"} == {4e-3}  # its own best is 2e-3
    compared = [cell for cell in cells if not is_tuning(cell)]
    assert sorted((cell.arm, cell.seed) for cell in compared) == sorted(
        (arm, seed) for arm in ARMS for seed in SEEDS
    )
    for place, cell in enumerate(cells):
        if cell.arm == "replayed":
            source = source_of(cells[:place], cell)
            assert source is not None
            assert (source.arm, source.ranks) == ("dynarank_alpha_8", f"{cell.seed} 2000")


def test_the_ranks_are_written_as_a_run_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "bench" / "cells.csv"
    cells = played()
    for cell in cells:
        append_cell(file, cell)
    wanted = next(cell for cell in cells if cell.arm == "replayed" and cell.seed == 3)
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"matrices\.txt: is not there"):
        given_ranks(file, wanted, tmp_path / "a")

    write_names(file, ["layer.0.query", "layer.0.key"])
    write_names(file, ["others"])  # it is written once
    folder = given_ranks(file, wanted, tmp_path / "a").strip("'\"")
    ranks = json.loads((Path(folder) / RANKS).read_text())
    assert ranks == {"layer.0.query": 3, "layer.0.key": 2000}
    assert given_ranks(file, cells[0], tmp_path / "b") == ""
    assert (file.parent / NAMES).read_text().splitlines() == ["layer.0.query", "layer.0.key"]
