"""Several processes at one bench: no cell is run twice, and what a killed one held is free."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dynarank.sweeps import bench_runs
from dynarank.sweeps.bench import Cell, append_cell, read_cells
from dynarank.sweeps.bench_claims import Claims
from dynarank.sweeps.bench_tuning import is_tuning, next_tuning, pending

ARMS = ("lora_even", "dynarank_alpha_8")


def plan(cells: list[Cell]) -> list[Cell]:
    return list(pending(cells, ["sst2"], [0.25], ARMS))


def take(claims: Claims) -> Cell | None:
    with claims.locked() as cells:
        return claims.take(plan(cells))


def finished(cell: Cell, _: object = None, __: object = None) -> Cell:
    loss = abs(math.log2(cell.lr / 4e-3)) + cell.seed / 1000
    return replace(cell, metric="accuracy", score=1 - loss, loss=loss, ranks="1 0")


@pytest.fixture
def claims(tmp_path: Path) -> Claims:
    return Claims(tmp_path / "cells.csv")


def test_a_claimed_cell_goes_to_nobody_else(claims: Claims, tmp_path: Path) -> None:
    other = Claims(tmp_path / "cells.csv")
    first, second = take(claims), take(other)
    assert first is not None
    assert second is not None
    assert {first.arm, second.arm} == set(ARMS)
    assert take(claims) is None  # the next rates are known once these are done
    claims.finish(finished(first))
    third = take(other)
    assert third is not None
    assert (third.arm, third.lr) == (first.arm, 2 * first.lr)


def test_a_comparison_waits_for_the_tuning_that_another_is_at() -> None:
    cells: list[Cell] = []
    while any(next_tuning(cells, arm, "sst2", 0.25) for arm in ARMS):
        cells.append(finished(plan(cells)[0]))
    last = cells.pop()  # another process is at the last rate of its arm
    assert is_tuning(last)
    wanted = [cell for cell in plan(cells) if cell.key != last.key]
    assert {cell.arm for cell in wanted} == set(ARMS) - {last.arm}


def test_the_claim_of_a_process_that_is_gone_is_free(claims: Claims, tmp_path: Path) -> None:
    first = take(claims)
    (record,) = (tmp_path / ".cells.csv.claims").iterdir()
    owner = json.loads(record.read_text())
    assert owner["pid"] == os.getpid()
    record.write_text(json.dumps({**owner, "started": owner.get("started", 0) + 1}))
    assert take(claims) == first


def test_claims_leave_nothing_behind(claims: Claims, tmp_path: Path) -> None:
    cell = take(claims)
    assert cell is not None
    claims.finish(finished(cell))
    claims.release(cell)
    assert not (tmp_path / ".cells.csv.claims").exists()
    assert [one.key for one in read_cells(tmp_path / "cells.csv")] == [cell.key]


def test_workers_run_every_cell_once_and_as_many_as_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2)

    def run_cell(cell: Cell, _: object, __: Path, goes_on: Callable[[], bool]) -> Cell:
        assert goes_on()
        if cell.lr == 1e-3:
            together.wait(10)  # both are at work at once
        return finished(cell)

    monkeypatch.setattr(bench_runs, "run_cell", run_cell)
    monkeypatch.setattr(bench_runs, "start_server", lambda _: False)
    monkeypatch.setattr(bench_runs, "POLL_SECONDS", 0.01)
    file = tmp_path / "cells.csv"
    assert bench_runs.run_bench(file, ["sst2"], [0.25], ARMS, most=7, workers=2) == 7
    assert len(read_cells(file)) == 7
    together.reset()
    bench_runs.run_bench(file, ["sst2"], [0.25], ARMS, workers=2)
    keys = [cell.key for cell in read_cells(file)]
    tuning = 4 + 2  # the grid, and two rates on a second seed
    assert len(keys) == len(set(keys)) == 2 * (tuning + 5)
    assert plan(read_cells(file)) == []


def test_an_equal_run_of_another_arm_is_written_down_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cells.csv"
    for seed in (1, 2):
        cell = Cell("dynarank", "sst2", 0.25, seed, 1e-2)
        append_cell(file, replace(finished(cell), score=0.5 + seed))
    ran = []

    def run_cell(cell: Cell, *_: object) -> Cell:
        ran.append(cell.seed)
        return finished(cell)

    monkeypatch.setattr(bench_runs, "run_cell", run_cell)
    monkeypatch.setattr(bench_runs, "start_server", lambda _: False)
    bench_runs.run_bench(file, ["sst2"], [0.25], ["dynarank_at_1e-2"], seeds=(1, 2, 3))
    assert ran == [3]
    scores = [cell.score for cell in read_cells(file) if cell.arm == "dynarank_at_1e-2"]
    assert scores[:2] == [1.5, 2.5]


def test_a_failure_of_one_worker_stops_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_cell(cell: Cell, _: object, __: Path, goes_on: Callable[[], bool]) -> Cell:
        if cell.arm == ARMS[1]:
            raise OSError("no room")
        while goes_on():
            time.sleep(0.01)
        raise InterruptedError

    monkeypatch.setattr(bench_runs, "run_cell", run_cell)
    monkeypatch.setattr(bench_runs, "start_server", lambda _: False)
    with pytest.raises((OSError, InterruptedError)):
        bench_runs.run_bench(tmp_path / "cells.csv", ["sst2"], [0.25], ARMS, workers=2)
    assert not (tmp_path / ".cells.csv.claims").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_bench_that_is_stopped_ends_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    together, ended = threading.Barrier(2), []

    def run_cell(cell: Cell, _: object, __: Path, goes_on: Callable[[], bool]) -> Cell:
        if together.wait(10) == 0:  # of two workers at work, one
            time.sleep(0.1)  # both are known to the pool then
            os.kill(os.getpid(), number)
        deadline = time.monotonic() + 10
        while goes_on() and time.monotonic() < deadline:
            time.sleep(0.01)
        ended.append(not goes_on())
        raise InterruptedError

    monkeypatch.setattr(bench_runs, "run_cell", run_cell)
    monkeypatch.setattr(bench_runs, "start_server", lambda _: False)
    # What a shell starts in the background ignores Ctrl-C, and so would this process then.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            bench_runs.run_bench(tmp_path / "cells.csv", ["sst2"], [0.25], ARMS, workers=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == [True, True]
    assert not (tmp_path / ".cells.csv.claims").exists()


def test_cells_of_an_arm_that_is_no_more_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cells.csv"
    kept = Cell("lora_even", "sst2", 0.25, 1, 1e-3, "accuracy", 0.8, 0.4)
    for cell in (replace(kept, arm="gone"), kept, replace(kept, arm="gone", seed=2)):
        append_cell(file, cell)
    monkeypatch.setattr(bench_runs, "start_server", lambda _: False)
    monkeypatch.setattr(bench_runs, "run_cell", lambda cell, *_: replace(cell, score=0.8, loss=0.4))
    (repetition,) = bench_runs.repeat_cells(file, 3)
    assert repetition.before == kept
    assert repetition.equal


def test_repeated_cells_are_compared_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cells.csv"
    for seed in range(1, 8):
        append_cell(file, finished(Cell("dynarank_alpha_8", "sst2", 0.25, seed, 4e-3)))
    append_cell(file, Cell("dynarank_alpha_8", "sst2", 0.25, 8, 4e-3))  # it failed
    before = file.read_bytes()

    def run_cell(cell: Cell, _: object, __: Path) -> Cell:
        assert math.isnan(cell.score)  # nothing of the former run is handed on
        again = finished(cell)
        return replace(again, loss=math.nextafter(again.loss, 1)) if cell.seed == 4 else again

    monkeypatch.setattr(bench_runs, "run_cell", run_cell)
    monkeypatch.setattr(bench_runs, "start_server", lambda _: False)
    found = bench_runs.repeat_cells(file, 3)
    assert [(one.before.seed, one.equal) for one in found] == [(1, True), (4, False), (7, True)]
    assert file.read_bytes() == before
