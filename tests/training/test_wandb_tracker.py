"""Trouble with W&B is said once, and never reaches the training."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dynarank.training.wandb_mode import mode_and_reason, wandb_project
from dynarank.training.wandb_tracker import STEP, WandbTracker


class Run:
    """What W&B opens, as far as the tracker uses it."""

    id = "x"

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.finished = False

    def log(self, record: dict[str, Any]) -> None:
        if "broken" in record:
            raise OSError("no space left")
        self.logged.append(record)

    def finish(self) -> None:
        self.finished = True


def test_what_is_logged_before_it_is_open_is_kept_in_order() -> None:
    run, may_open = Run(), threading.Event()

    def open_run(mode: str) -> Run:
        may_open.wait()
        return run

    tracker = WandbTracker(open_run, "offline")
    tracker.log_metrics({"a": 1}, step=1)
    tracker.finalize("success")
    assert run.logged == []
    may_open.set()
    tracker._thread.join()
    tracker.log_metrics({"a": 2}, step=2)
    assert run.logged == [{"a": 1, STEP: 1}, {"a": 2, STEP: 2}]
    tracker.finish({"final/a": 2})
    assert (run.summary, run.finished) == ({"final/a": 2}, True)


def test_where_it_cannot_be_online_it_is_kept_offline(caplog: pytest.LogCaptureFixture) -> None:
    run, modes = Run(), []

    def open_run(mode: str) -> Run:
        modes.append(mode)
        if mode == "online":
            raise RuntimeError("API key must have 40+ characters\nmore")
        return run

    tracker = WandbTracker(open_run, "online")
    tracker.log_metrics({"a": 1}, step=1)
    tracker.finish({})
    assert modes == ["online", "offline"]
    assert run.logged == [{"a": 1, STEP: 1}]
    assert "W&B does not open online (API key must have 40+ characters)" in caplog.text


def test_where_it_cannot_be_at_all_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def open_run(mode: str) -> Run:
        raise KeyError("getpwuid(): uid not found: 1042")

    tracker = WandbTracker(open_run, "offline")
    tracker.log_metrics({"a": 1}, step=1)
    tracker.log_image("map", [None], step=1)
    tracker.finish({"final/a": 1})
    assert tracker.version is None
    assert caplog.text.count("the run goes on") == 1


def test_where_logging_fails_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    run = Run()
    tracker = WandbTracker(lambda mode: run, "offline")
    tracker._thread.join()
    for step in range(3):
        tracker.log_metrics({"broken": step}, step=step)
    tracker.finish({"final/a": 1})
    assert caplog.text.count("W&B does not take what is logged (no space left)") == 1
    assert run.summary == {}


def test_the_environments_names_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "quarterly-review")
    assert wandb_project("dynarank") == "quarterly-review"
    assert wandb_project("mine") == "mine"
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert mode_and_reason("auto") == ("disabled", "WANDB_DISABLED")
    assert mode_and_reason("offline")[0] == "offline"
