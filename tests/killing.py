"""Runs in processes of their own that kill themselves, as a machine would, at a chosen moment of their work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import configure

Death = tuple[str, int] | Callable[[int], None]
"""A moment and its number; or what else to do to the process of a rank before it runs."""

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


def start(folder: Path, hub: Path, overrides: list[str], death: Death | None = None, world: int = 1) -> list[int]:
    """Run to the end, or to the death, in `world` processes as torchrun starts them.

    Returns their exit codes (-9: killed). Once one has died the others are killed, as a launcher does.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [context.Process(target=_run, args=(folder, hub, overrides, death, rank, world, port)) for rank in range(world)]
    for process in ranks:
        process.start()
    while any(process.is_alive() for process in ranks):
        for process in ranks:
            process.join(0.1)
        if any(process.exitcode for process in ranks):
            for process in ranks:
                process.kill()
    return [int(process.exitcode or 0) for process in ranks]


def _run(folder: Path, hub: Path, overrides: list[str], death: Death | None, rank: int, world: int, port: int) -> None:
    import datasets
    import torch
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from dynarank.training.run import run

    os.environ["HF_HUB_OFFLINE"] = "1"
    if world > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        names |= {"MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {name: str(value) for name, value in names.items()}
        rank_zero_only.rank = rank  # Lightning was imported before the environment told
        overrides = [*overrides, f"trainer.devices={world}"]
    datasets.config.HF_DATASETS_CACHE = hub / f"cache{rank}"
    torch.set_num_threads(1)
    if isinstance(death, tuple):
        arm(*death)
    elif death is not None:
        death(rank)
    run(configure(folder, hub, *overrides))
