"""metrics.csv holds all rows at every moment, and after a restore those of the checkpoint."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from dynarank import durable_files
from dynarank.training.history_file import HistoryFile


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def written(folder: Path) -> HistoryFile:
    """Three rows, of which the last brings a new column."""
    history = HistoryFile(folder)
    history.log_metrics({"loss": torch.tensor(0.5), "epoch": 0}, 1)
    history.log_metrics({"loss": 0.25}, 2)
    history.save()
    history.log_metrics({"accuracy": float("nan")}, 3)
    history.save()
    return history


EXPECTED = [
    {"step": "1", "loss": "0.5", "epoch": "0"},
    {"step": "2", "loss": "0.25"},
    {"step": "3", "accuracy": "nan"},
]


def test_rows_are_written_under_all_columns_in_order(tmp_path: Path) -> None:
    history = written(tmp_path)
    assert rows(tmp_path) == EXPECTED
    assert (tmp_path / "metrics.csv").read_bytes().splitlines()[0] == b"accuracy,epoch,loss,step"
    assert (tmp_path / "metrics.csv").read_bytes() == history.text().encode()


def test_a_column_that_comes_up_never_leaves_the_file_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = written(tmp_path)
    history.log_metrics({"penalty": 1.0}, 4)

    def die(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(durable_files.os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        history.save()
    assert rows(tmp_path) == EXPECTED


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: None, False),
        (lambda file: file.unlink(), False),
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), True),
        (lambda file: file.write_text(file.read_text().replace("0.25", "0.35")), True),
        (lambda file: file.write_bytes(b"\xff\x00"), True),
        (lambda file: file.write_bytes(file.read_bytes() + b",,,9\r\n"), False),
    ],
    ids=["whole", "deleted", "cut short", "changed", "not text", "more rows"],
)
def test_a_restored_file_holds_the_rows_of_the_checkpoint(
    damage: object, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = written(tmp_path).text()
    whole = (tmp_path / "metrics.csv").read_bytes()
    damage(tmp_path / "metrics.csv")  # type: ignore[operator]
    again = HistoryFile(tmp_path)
    again.restore(text)
    assert (tmp_path / "metrics.csv").read_bytes() == whole
    assert ("cut short or changed" in caplog.text) == said
    again.log_metrics({"loss": 0.125}, 4)
    again.save()
    assert rows(tmp_path) == [*EXPECTED, {"step": "4", "loss": "0.125"}]
    assert again.rows == 4


def test_a_file_that_others_changed_in_between_is_written_whole(tmp_path: Path) -> None:
    history = written(tmp_path)
    (tmp_path / "metrics.csv").write_bytes(b"step\r\n")
    history.log_metrics({"loss": 0.125}, 4)
    history.save()
    assert rows(tmp_path) == [*EXPECTED, {"step": "4", "loss": "0.125"}]
