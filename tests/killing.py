"""Runs in processes of their own that die or are told to end, as by a machine, at a chosen moment
of their work."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import CONF, configure

Death = tuple[Any, ...] | Callable[[int], None]
"""A moment, its number, and the signals it brings (default: SIGKILL); or what else to do to a rank
before it runs."""

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["dynarank.runs.run", "transformers", "datasets", "torchmetrics", "peft", "tiny"]
)


def forked_command(
    words: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """A script with its arguments, in a fork that has the imports behind it; its output kept.

    Variables that libraries read when they are imported have no effect: where a test is about
    those, or about what is imported, it starts a process of its own.
    """
    with tempfile.TemporaryDirectory() as outputs:
        streams = [Path(outputs) / name for name in ("stdout", "stderr")]
        process = context.Process(target=_be_command, args=(words, folder, environment, streams))
        process.start()
        process.join()
        stdout, stderr = (stream.read_text() for stream in streams)
    return subprocess.CompletedProcess(words, int(process.exitcode or 0), stdout, stderr)


def _be_command(
    words: list[str], folder: Path, environment: dict[str, str], streams: list[Path]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # trackers finish their runs there


def kill(_: Any = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(
    owner: Any,
    name: str,
    number: int,
    act: Callable[[], None] = kill,
    counts: Callable[..., bool] = lambda *_, **__: True,
) -> None:
    """Let the `number`-th call of `owner.name`, of those that count, be preceded by `act`."""
    original, calls = getattr(owner, name), [0]

    def patched(*args: Any, **kwargs: Any) -> Any:
        if counts(*args, **kwargs):
            calls[0] += 1
            if calls[0] == number:
                act()
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def arm(moment: str, number: int, *signals: signal.Signals) -> None:
    """Set the moment of death: its name, at which of its kind, and the signals, which worker
    processes get as well."""
    import torch

    from dynarank import durable_files
    from dynarank.checkpoints import storage
    from dynarank.runs import export, results
    from dynarank.tasks import sources
    from dynarank.tasks.text_classification import TextClassification
    from dynarank.training import cut, history_file, rank_allocation

    def receive() -> None:
        for one in signals:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, one)
            os.kill(os.getpid(), one)

    moments: dict[str, tuple[Any, str]] = {
        "reading data": (sources, "_load_dataset"),
        "a step": (torch.optim.AdamW, "step"),
        "the cut": (rank_allocation, "cut_run"),
        "the cut of the optimizer": (cut, "cut_optimizer"),
        "validation": (TextClassification, "score"),
        "before a manifest": (storage, "file_sha256"),
        "the history": (history_file, "write_text"),
        "exporting": (export, "save_processor"),
        "moving the export": (export, "move_file"),
        "the end": (results, "write_json"),
    }
    flushes = {"writing a checkpoint": "/checkpoints", "appending to the history": "metrics.csv"}
    act = receive if signals else kill
    if moment not in flushes:
        at_call(*moments[moment], number, act)
        return

    def counts(handle: int) -> bool:
        return flushes[moment] in os.readlink(f"/proc/self/fd/{handle}")

    at_call(durable_files.os, "fsync", number, act, counts)


def start(
    folder: Path,
    hub: Path,
    overrides: list[str],
    death: Death | None = None,
    world: int = 1,
    said: Path | None = None,
) -> list[int]:
    """Run to the end, or to the death, in `world` processes as torchrun starts them.

    Returns their exit codes (-9: killed). Once one has died the others are killed, as a launcher
    does. With `said`, a run ends as by the command line, and what it prints goes to that file.
    """
    ranks = begin(folder, hub, overrides, death, world, said)
    while any(process.is_alive() for process in ranks):
        for process in ranks:
            process.join(0.1)
        if any(process.exitcode for process in ranks):
            for process in ranks:
                process.kill()
    return [int(process.exitcode or 0) for process in ranks]


def begin(
    folder: Path,
    hub: Path,
    overrides: list[str],
    death: Death | None = None,
    world: int = 1,
    said: Path | None = None,
) -> list[Any]:
    """The processes, started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = (folder, hub, overrides, death, said)
    ranks = [
        context.Process(target=_run, args=(*shared, rank, world, port)) for rank in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


def _run(
    folder: Path,
    hub: Path,
    overrides: list[str],
    death: Death | None,
    said: Path | None,
    rank: int,
    world: int,
    port: int,
) -> None:
    import datasets
    import torch
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from dynarank.commands.user_errors import user_errors
    from dynarank.runs.run import run

    os.environ["HF_HUB_OFFLINE"] = "1"
    if world > 1:
        names = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "GROUP_RANK": 0,
            "WORLD_SIZE": world,
            "LOCAL_WORLD_SIZE": world,
        }
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
    if said is None:
        run(configure(folder, hub, *overrides))
        return
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["train.py", *overrides]
    with user_errors(CONF):
        run(configure(folder, hub, *overrides))
