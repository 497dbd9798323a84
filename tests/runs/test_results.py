"""What a run leaves, at a moment when it is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dynarank.runs import results
from dynarank.runs.results import Results, read_results, write_results


def finished(folder: Path) -> Results:
    return Results(
        task="cola",
        method="dora",
        model="tiny",
        seed=0,
        metrics={"matthews": float("nan")},
        last={"matthews": 0.25},
        selected={"metric": "matthews", "epoch": 1, "step": 4},
        at_budget=True,
        budget_target=1,
        components_target=2,
        components_kept=2,
        adapter_parameters=10,
        head_parameters=2,
        model_parameters=100,
        total_steps=4,
        lr=0.1,
        epochs=1,
        batch_size=2,
        seconds=0.5,
        output_dir=str(folder),
        ranks={"layer.0.a": 2, "layer.0.b": 0},
    )


def test_what_says_finished_is_written_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "save_rank_map", killed)
    with pytest.raises(KeyboardInterrupt):
        write_results(finished(tmp_path), 2, [], tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    monkeypatch.undo()
    write_results(finished(tmp_path), 2, [], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "run_files.json",
        "metrics.json",
        "ranks.json",
        "rank_history.json",
        "rank_map.png",
        "rank_map.svg",
        "rank_map.pdf",
    }


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    wanted = finished(tmp_path)
    write_results(wanted, 2, [], tmp_path)
    found = read_results(tmp_path)
    assert found.metrics == {"matthews": None}  # JSON has no NaN
    found.metrics = wanted.metrics
    assert found == wanted
