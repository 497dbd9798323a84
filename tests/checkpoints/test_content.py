"""What a checkpoint holds, and that nothing in it that is not finite is ever written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import configure

from dynarank.checkpoints.storage import checkpoint_path, newest_valid, read_checkpoint
from dynarank.errors import UserError
from dynarank.runs.run import run
from dynarank.training.module import FineTuning

SETTINGS = ["checkpoint.every_steps=1", "trainer.clip=0", "checkpoint.keep=9"]


def spoil_weight(module: FineTuning) -> None:
    next(p for p in module.parameters() if p.requires_grad).data.view(-1)[0] = float("inf")


def spoil_moment(module: FineTuning) -> None:
    state = next(iter(module.trainer.optimizers[0].state.values()))
    state["exp_avg_sq"].view(-1)[0] = float("nan")


def spoil_average(module: FineTuning) -> None:
    assert module.average is not None
    next(iter(module.average.average.values())).view(-1)[0] = float("nan")


@pytest.mark.parametrize("spoil", [spoil_weight, spoil_moment, spoil_average])
def test_what_is_not_finite_is_never_saved(
    spoil: Callable[[FineTuning], None],
    hub_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = FineTuning.on_train_batch_end

    def on_train_batch_end(self: FineTuning, *given: Any) -> None:
        original(self, *given)
        if self.trainer.global_step == 3:
            spoil(self)

    monkeypatch.setattr(FineTuning, "on_train_batch_end", on_train_batch_end)
    said = r"step 3: .*not finite, and is not saved\. Lower optimizer\.lr.*step-00000002\.ckpt"
    with pytest.raises(UserError, match=said):
        run(configure(tmp_path, hub_root, *SETTINGS, "trainer.ema=0.9"))
    newest, _, skipped = newest_valid(tmp_path / "checkpoints")
    assert newest == checkpoint_path(tmp_path / "checkpoints", 2)
    assert skipped == []


def test_the_history_goes_on_from_the_checkpoint_whatever_became_of_the_file(
    hub_root: Path, tmp_path: Path
) -> None:
    settings = ["trainer.epochs=3", "checkpoint.every_steps=2", "checkpoint.keep=9"]
    run(configure(tmp_path / "whole", hub_root, *settings))
    whole = (tmp_path / "whole/metrics.csv").read_bytes()
    for name, damage in {
        "deleted": lambda file: file.unlink(),
        "cut short": lambda file: file.write_bytes(whole[:30]),
    }.items():
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / name))
        (folder / "metrics.json").unlink()
        for step in (6, 8, 9):
            checkpoint_path(folder / "checkpoints", step).with_suffix(".json").unlink(
                missing_ok=True
            )
            checkpoint_path(folder / "checkpoints", step).unlink(missing_ok=True)
        damage(folder / "metrics.csv")
        run(configure(folder, hub_root, *settings, "resume.path=auto"))
        assert (folder / "metrics.csv").read_bytes() == whole
    elsewhere = tmp_path / "elsewhere"
    at = checkpoint_path(tmp_path / "whole/checkpoints", 4)
    run(configure(elsewhere, hub_root, *settings, f"resume.path={at}"))
    assert (elsewhere / "metrics.csv").read_bytes() == whole


def test_a_checkpoint_holds_its_history(hub_root: Path, tmp_path: Path) -> None:
    import zlib

    run(configure(tmp_path, hub_root, "checkpoint.keep=9", "trainer.epochs=3"))
    last = read_checkpoint(checkpoint_path(tmp_path / "checkpoints", 9))
    text = zlib.decompress(last["metrics_csv"].numpy().tobytes())
    assert (tmp_path / "metrics.csv").read_bytes().startswith(text)
    assert last["metrics_csv"].dtype == torch.uint8
