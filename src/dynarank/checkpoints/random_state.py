"""The state of a process's random generators, so that a resumed run draws what it would have."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Return the state of this process's generators, in types that `weights_only` loads."""
    version, keys, gauss = random.getstate()
    kind, array, position, has_gauss, cached = np.random.get_state(legacy=True)
    # torch has few operations for numpy's uint32, and int64 holds all of its values.
    numpy_keys = torch.from_numpy(np.asarray(array).astype(np.int64))
    return {
        "python": [version, list(keys), gauss],
        "numpy": [kind, numpy_keys, int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put this process's generators into a state that `random_state` returned."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, array, position, has_gauss, cached = state["numpy"]
    numpy_keys = array.numpy().astype(np.uint32)
    np.random.set_state((kind, numpy_keys, position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    # Checkpoints of earlier versions hold none.
    if state.get("mps") is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
