"""The line at the foot of a terminal, and what is logged above it."""

from __future__ import annotations

import io
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import configure

from dynarank.runs import trainer as run_trainer
from dynarank.runs.run import run
from dynarank.training.progress_bar import OneLineBar, bar_line, clock

PARTS = ["step 183/549", "loss 0.3121", "matthews 0.8644", "budget 5.71", "216 kept", "1:12 left"]


@pytest.mark.parametrize("width", [20, 40, 79, 120])
def test_the_line_fits_and_keeps_the_step_and_the_time_left(width: int) -> None:
    line = bar_line(PARTS, 1 / 3, width)
    assert len(line) <= width
    assert line.startswith("step 183/549")
    assert line.endswith("1:12 left"[: max(0, width - 14)])


def test_the_bar_takes_the_room_that_is_left() -> None:
    line = bar_line(PARTS, 0.5, 120)
    assert line.count("━") == line.count("╌") == 15
    assert "━" not in bar_line(PARTS, 0.5, 79)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (42.4, "0:42"), (725, "12:05"), (11220, "3:07:00")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_a_run_on_a_terminal_keeps_its_lines_and_takes_the_bar_away(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each validation's line stays, whole, however long it is; the handler gets its stream back."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60, legacy_windows=False)
    monkeypatch.setattr(run_trainer, "_on_terminal", lambda: True)
    monkeypatch.setattr(run_trainer, "OneLineBar", lambda: kept(OneLineBar(console)))
    monkeypatch.setattr("dynarank.training.progress_bar.SECONDS", 0.0)
    bars: list[Any] = []

    def kept(bar: OneLineBar) -> OneLineBar:
        bars.append(bar)
        return bar

    handler = logging.StreamHandler(sys.__stdout__)
    log = logging.getLogger("dynarank")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        run(configure(tmp_path, hub_root, "trainer.epochs=2", "budget.interval=1"))
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert handler.stream is sys.__stdout__
    assert bars[0]._live is None
    text = screen.getvalue()
    for step in (3, 6):
        # Such a line is longer than the screen is wide, and is not broken by us.
        assert re.search(rf"step {step}/6  matthews \S+  frozen, 24 of 36 kept.*\n", text)
    assert "validating 1/" in text
    assert "left" in text
    assert "v_num" not in text
