"""TensorBoard, and callbacks of the user's own."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback
from tiny import configure

from dynarank.errors import UserError
from dynarank.runs.run import run
from dynarank.training import tensorboard_tracker
from dynarank.training.own_callbacks import build_callbacks
from dynarank.training.trackers import resolved_settings


class Counts(Callback):
    """Counts batches, for the test below."""

    batches = 0

    def on_train_batch_end(self, *_: Any) -> None:
        Counts.batches += 1


NAME = f"{__name__}.Counts"


def test_tensorboard_gets_curves_rank_maps_and_settings_and_callbacks_run(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("DYNARANK_CALLBACKS", f"other.Thing, {NAME}")
    Counts.batches = 0
    given = ("logger=tensorboard", "trainer.epochs=2", "budget.interval=1")
    run(configure(tmp_path, hub_root, *given, f"trainer.callbacks=[{NAME}]"))
    assert Counts.batches == 6
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert [event.step for event in events.Scalars("val/matthews")][:2] == [3, 6]
    assert "train/loss" in tags["scalars"]
    assert events.Images("rank_map")
    folders = {path.parent for path in (tmp_path / "tensorboard").rglob("*tfevents*")}
    assert folders == {tmp_path / "tensorboard"}  # no version_0
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_a_missing_package_is_said_before_anything_slow(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = util.find_spec
    monkeypatch.setattr(
        tensorboard_tracker,
        "find_spec",
        lambda name: None if name.startswith("tensorboard") else find(name),
    )
    with pytest.raises(UserError, match="pip install tensorboard, or take logger=wandb"):
        run(configure(tmp_path, hub_root, "logger=tensorboard"))


@pytest.mark.parametrize(
    ("name", "allowed", "said"),
    [
        (NAME, "", rf"is not allowed.*DYNARANK_CALLBACKS={NAME}"),
        ("no_such_module.X", "no_such_module.X", "cannot be made .ModuleNotFoundError"),
        ("pathlib.Path", "pathlib.Path", "is no lightning.pytorch.callbacks.Callback"),
    ],
)
def test_callbacks_that_are_not_allowed_or_are_none_are_refused(
    name: str, allowed: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNARANK_CALLBACKS", allowed)
    before = set(sys.modules)
    with pytest.raises(UserError, match=said):
        build_callbacks([name])
    assert "no_such_module" not in set(sys.modules) - before


def test_trackers_get_the_values_that_stand_for_null(hub_root: Path, tmp_path: Path) -> None:
    config = configure(tmp_path, hub_root)
    settings = resolved_settings(config)
    assert settings["optimizer"]["lr"] == config.lr
    assert settings["trainer"]["epochs"] == config.epochs
    assert settings["trainer"]["batch_size"] == config.batch_size
