"""Training does not wait for W&B."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import configure

import dynarank.runs.run
from dynarank.runs.run import run
from dynarank.training.wandb_tracker import STEP


def test_all_of_training_is_done_where_wandb_opens_after_it(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    logged: list[dict[str, Any]] = []
    trained = threading.Event()
    fit = dynarank.runs.run.fit

    def fit_and_tell(*arguments: Any) -> None:
        fit(*arguments)
        events.append("trained")
        trained.set()

    def open_run(**options: Any) -> SimpleNamespace:
        trained.wait(60)  # a run that waits for this call would fail here, by the order
        events.append("opened")
        return SimpleNamespace(
            id="x",
            define_metric=lambda *names, **settings: None,
            log=logged.append,
            summary={},
            finish=lambda: events.append("closed"),
        )

    monkeypatch.setattr(dynarank.runs.run, "fit", fit_and_tell)
    monkeypatch.setattr("wandb.init", open_run)
    run(configure(tmp_path, hub_root, "logger=wandb", "trainer.epochs=1", "trainer.log_every=1"))
    assert events == ["trained", "opened", "closed"]
    steps = [record[STEP] for record in logged if STEP in record]
    assert steps
    assert steps == sorted(steps)  # nothing is lost, and nothing out of turn
