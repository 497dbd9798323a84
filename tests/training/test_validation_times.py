"""An epoch is validated as often as was asked for, evenly, and at its end."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import pytest
from tiny import configure

from dynarank.runs.run import run
from dynarank.training.validation_times import validation_batches, validation_interval

CASES = [
    ((5, 1, 1), [5], 1.0),
    ((10, 2, 1), [5, 10], 5),
    ((10, 5, 2), [2, 4, 6, 8, 10], 2),
    ((5, 3, 1), [2, 4, 5], None),
    ((10, 6, 1), [2, 4, 5, 7, 9, 10], None),
    ((10, 2, 3), [6, 10], None),
    ((3, 9, 1), [1, 2, 3], 1),
    ((7, 9, 2), [2, 4, 6, 7], None),
    ((1, 4, 8), [1], 1.0),
]
"""Batches, validations and accumulation; behind which batches; Lightning's interval."""


@pytest.mark.parametrize(("asked", "ends", "interval"), CASES)
def test_the_last_validation_ends_the_epoch(
    asked: tuple[int, int, int], ends: list[int], interval: float | None
) -> None:
    assert validation_batches(*asked) == ends
    assert validation_interval(ends) == interval


def test_a_run_validates_unevenly_where_its_steps_do_not_divide(
    hub_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Forty rows: ten batches an epoch, and four steps."""
    settings = ["trainer.batch_size=4", "trainer.accumulate=3", "trainer.validations_per_epoch=3"]
    with caplog.at_level(logging.INFO, logger="dynarank"):
        run(configure(tmp_path, hub_root, *settings))
    history = pd.read_csv(tmp_path / "metrics.csv")
    validated = history[history["val/loss"].notna()]
    assert list(validated["step"]) == [2, 3, 4, 6, 7, 8]
    assert list(validated["epoch"]) == [1, 1, 1, 2, 2, 2]
    assert "validations: 3 an epoch, after its steps 2, 3, 4" in caplog.text
