"""What a run leaves, at a moment when it is killed."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dynarank.config.command_line import program_to_print
from dynarank.runs import results
from dynarank.runs.results import Results, read_results, write_artifacts, write_results
from dynarank.runs.summary import collapse_warning, next_steps, places, summary_rows


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


def test_baseline_and_test_stand_beside_the_scores(tmp_path: Path) -> None:
    given = replace(
        finished(tmp_path),
        metrics={"matthews": 0.5},
        baseline={"name": "majority class", "metrics": {"matthews": 0.0}},
        test_metrics={"matthews": 0.25},
        test_rows=1234,
    )
    rows = summary_rows(given)
    assert rows["matthews"] == "0.5000 (best, epoch 1, at budget); majority class 0.0000"
    assert rows["test matthews"] == "0.2500 (1,234 rows, once)"


def test_a_run_that_learned_nothing_says_so(tmp_path: Path) -> None:
    assert collapse_warning(finished(tmp_path)) == []
    collapsed = replace(finished(tmp_path), collapsed="all 9 rows 'good'")
    what, remedy = collapse_warning(collapsed)
    assert "predicts one thing for all 9 rows 'good'" in what
    # Methods differ: c = 0 learns nothing at a rate that is too low, LoRA at one that is too high.
    assert remedy.startswith("Another optimizer.lr may help")


def test_the_next_commands_are_as_they_are_typed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain name where a shell finds this environment's; else the program's place."""
    scripts = tmp_path / ".venv" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "dynarank").write_text("#!/bin/sh\n")
    (scripts / "dynarank").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(scripts / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    given = finished(tmp_path / "out" / "a run")
    assert next_steps(given)[0] == "Next: .venv/bin/dynarank report 'out/a run'"
    monkeypatch.setenv("PATH", str(scripts))
    assert program_to_print() == "dynarank"


def test_a_run_over_budget_is_told_to_go_on(tmp_path: Path) -> None:
    """A report leaves it out, and predict takes it only when told: both would refuse it."""
    given = replace(finished(tmp_path / "a run"), at_budget=False)
    (step,) = next_steps(given)  # it has learned nothing, and left no adapter
    said = "Next: the same command with resume=auto "
    assert step.startswith(said)
    assert shlex.split(step.removeprefix(said))[0] == f"hydra.run.dir='{tmp_path / 'a run'}'"
    (tmp_path / "a run" / "over_budget").mkdir(parents=True)
    assert " --over-budget --input FILE" in next_steps(given)[1]
    assert any("larger than its budget" in line for line in places(given))


def test_a_prediction_that_is_not_finite_is_null(tmp_path: Path) -> None:
    """NaN is no JSON: other readers than Python's refuse a file that holds it."""
    write_artifacts({"predictions.jsonl": [{"log_likelihood": float("nan")}]}, tmp_path)
    assert (tmp_path / "predictions.jsonl").read_text() == '{"log_likelihood": null}\n'
