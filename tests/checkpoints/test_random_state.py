"""The generators go on where they were saved, on every kind of device."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from dynarank.checkpoints import callback
from dynarank.checkpoints.random_state import random_state, restore_random_state
from dynarank.checkpoints.signals import Signals
from dynarank.config.schema import CheckpointConfig


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_the_same_numbers_are_drawn_again() -> None:
    state = random_state()
    first = draws()
    assert draws() != first
    restore_random_state(state)
    assert draws() == first


def test_the_generator_of_an_apple_gpu_is_saved_too(monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[torch.Tensor] = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([7, 8]))
    monkeypatch.setattr(torch.mps, "set_rng_state", restored.append)
    state = random_state()
    restore_random_state(state)
    assert [one.tolist() for one in restored] == [[7, 8]]
    del state["mps"]  # as an earlier version saved it
    restore_random_state(state)
    assert len(restored) == 1


def test_a_device_that_the_run_did_not_have_before_draws_from_its_own_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback, "restore_loop_position", lambda *_: None)
    saved = [random_state()]
    expected = draws()
    drawn = {}
    for rank in (0, 1):
        config = CheckpointConfig()
        checkpoints = callback.Checkpoints(tmp_path, config, {}, Signals(), None, started=0.0)
        checkpoints.on_load_checkpoint(
            *(cast("Any", None),) * 2, {callback.REST: {"random": saved}}
        )
        torch.manual_seed(rank)
        own = torch.rand((), generator=torch.Generator().manual_seed(rank))
        trainer = cast("Any", SimpleNamespace(global_rank=rank, accumulate_grad_batches=2))
        checkpoints.on_train_batch_start(trainer, cast("Any", None), None, batch_idx=1)
        drawn[rank] = (draws()[2], float(own))
    assert drawn[0][0] == expected[2]
    assert drawn[1][0] == drawn[1][1]
