"""Runs in processes of their own that kill themselves, as a machine would, at a chosen moment of their work."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import configure

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["dynarank.training.run", "transformers", "datasets", "torchmetrics", "peft", "tiny"])


def kill(_: Any = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: Any, name: str, number: int, act: Callable[[], None] = kill) -> None:
    """Let the `number`-th call of `owner.name` be preceded by `act`."""
    original, calls = getattr(owner, name), [0]

    def patched(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            act()
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def arm(moment: str, number: int) -> None:
    """Set the moment of death: its name, and at which of its kind."""
    import torch

    from dynarank.tasks.text_classification import TextClassification
    from dynarank.training import checkpoints, results

    moments: dict[str, tuple[Any, str]] = {
        "a step": (torch.optim.AdamW, "step"),
        "validation": (TextClassification, "score"),
        "writing a checkpoint": (checkpoints.os, "fsync"),
        "before a manifest": (checkpoints, "_digest"),
        "the end": (results, "_write_json"),
    }
    at_call(*moments[moment], number)


def start(folder: Path, hub: Path, overrides: list[str], death: tuple[str, int] | None = None) -> int:
    """Run to the end, or to the death; returns the process's exit code (-9: killed)."""
    process = context.Process(target=_run, args=(folder, hub, overrides, death))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run(folder: Path, hub: Path, overrides: list[str], death: tuple[str, int] | None) -> None:
    import datasets
    import torch

    from dynarank.training.run import run

    os.environ["HF_HUB_OFFLINE"] = "1"
    datasets.config.HF_DATASETS_CACHE = hub / "cache"
    torch.set_num_threads(1)
    if death is not None:
        arm(*death)
    run(configure(folder, hub, *overrides))
