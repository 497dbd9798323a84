"""The generators go on where they were saved, on every kind of device."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from dynarank.checkpoints.random_state import random_state, restore_random_state


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
