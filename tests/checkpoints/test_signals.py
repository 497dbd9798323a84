"""Processes that make batches live as long as the training that they work for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from dynarank.checkpoints.signals import SIGNALS, prepare_worker


def work(file: Path) -> None:
    prepare_worker(0)
    for number in SIGNALS:
        os.kill(os.getpid(), number)
    file.write_text(str(os.getpid()))
    time.sleep(60)


def train(method: str, file: Path) -> None:
    multiprocessing.get_context(method).Process(target=work, args=(file,)).start()
    while not file.exists() or not file.read_text():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_training_that_is_killed_leaves_no_worker_behind(method: str, tmp_path: Path) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not {method}")
    training = multiprocessing.get_context("spawn").Process(
        target=train, args=(method, tmp_path / "pid")
    )
    training.start()
    training.join(60)
    assert training.exitcode == -signal.SIGKILL
    worker = int((tmp_path / "pid").read_text())  # it has outlived the signals that end a run
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and "State:\tZ" not in state(worker):
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.05)


def state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/status").read_text()
    except OSError:  # it has just ended
        return "State:\tZ"
