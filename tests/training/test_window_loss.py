"""The logged loss is that of the optimizer step: the mean over its batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny import configure

from dynarank.runs.run import run
from dynarank.training.module import FineTuning


def test_a_step_of_several_batches_logs_their_mean(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a penalty, what is differentiated is the batch's loss; the last window is shorter."""
    losses: list[float] = []
    scales: list[float] = []
    original = FineTuning.training_step

    def watched(module: FineTuning, batch: Any, batch_idx: int) -> Any:
        loss = original(module, batch, batch_idx)
        scales.append(3 / 2 if batch_idx >= 3 else 1)  # of the window of two batches
        losses.append(float(loss.detach()) / scales[-1])
        return loss

    monkeypatch.setattr(FineTuning, "training_step", watched)
    settings = ["method=lora", "trainer.batch_size=8", "trainer.accumulate=3", "trainer.epochs=1"]
    run(configure(tmp_path, hub_root, *settings))
    logged = pd.read_csv(tmp_path / "metrics.csv")["train/loss"].dropna()
    assert len(losses) == 5
    expected = [sum(losses[:3]) / 3, sum(losses[3:]) / 2]
    assert list(logged) == pytest.approx(expected, rel=1e-5)
