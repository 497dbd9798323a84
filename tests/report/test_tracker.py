"""The report in W&B: in the runs' project, and never a reason for the report to fail."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from dynarank.report import tracker


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A report's folder, of a run that left its project to the default."""
    run = SimpleNamespace(settings={"logger.project": "dynarank", "logger.mode": "offline"})
    monkeypatch.setattr(tracker, "read_runs", lambda folders: ([run], []))
    (tmp_path / "table.csv").write_text("score\n0.5\n")
    return tmp_path


def test_the_project_is_the_environments_where_the_setting_was_left_alone(
    report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def init(**options: Any) -> Any:
        asked.update(options)
        return SimpleNamespace(
            dir=str(report / "w/files"), offline=True, log=lambda _: None, finish=lambda: None
        )

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_PROJECT", "quarterly")
    assert tracker.log_report([report], report) == str(report / "w")
    assert (asked["project"], asked["job_type"]) == ("quarterly", "report")


def test_trouble_is_said_and_costs_nothing_else(
    report: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(**_: Any) -> Any:
        raise wandb.errors.CommError("no route to the server\nmore")

    monkeypatch.setattr(wandb, "init", init)
    assert tracker.log_report([report], report) is None
    assert "the report is not in W&B: CommError: no route to the server" in caplog.text
    assert "more" not in caplog.text
