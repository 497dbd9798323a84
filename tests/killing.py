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
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from tiny import CONF, configure

Death = tuple[Any, ...] | Callable[[int], None]
"""A moment, its number, and the signals it brings (default: SIGKILL); or what else to do to a rank
before it runs."""

context = multiprocessing.get_context("forkserver")


def start_server() -> None:
    """Start the server of which runs are forks, if none runs."""
    context.set_forkserver_preload(["preloaded_for_tests"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()


def forked_command(
    words: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """A script with its arguments, in a fork that has the imports behind it; its output kept.

    Variables that libraries read when they are imported have no effect: where a test is about
    those, or about what is imported, it starts a process of its own.
    """
    with tempfile.TemporaryDirectory() as outputs:
        process = begin_command(words, folder, environment, Path(outputs))
        process.join()
        stdout, stderr = ((Path(outputs) / name).read_text() for name in STREAMS)
    return subprocess.CompletedProcess(words, int(process.exitcode or 0), stdout, stderr)


STREAMS = ("stdout", "stderr")


def begin_command(
    words: list[str], folder: Path, environment: dict[str, str], outputs: Path
) -> Any:
    """The same, started: its process. What it prints goes to two files in `outputs`.

    A sweep's runs are forks of the tests' server, and outlive the sweep where it is killed alone.
    """
    start_server()
    process = context.Process(target=_be_command, args=(words, folder, environment, outputs))
    process.start()
    return process


def _be_command(words: list[str], folder: Path, environment: dict[str, str], outputs: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in enumerate(STREAMS, start=1):
        os.dup2(os.open(outputs / name, os.O_WRONLY | os.O_CREAT), number)
    _share_server()
    _start_processes_as_usual()
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # trackers finish their runs there


def _start_processes_as_usual() -> None:
    """Let a run start its workers as it does without the server.

    A fork of the server would start them by a server of its own, with all imports for each of them.
    """
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]


def _share_server() -> None:
    """Let the runs of a sweep in this process be forks of the server that it is a fork of.

    A sweep would start a server of its own, and make all imports once more. That it does so,
    `test_preloaded` and the sweep that is killed in `test_sweep` show.
    """
    from dynarank.sweeps import preloaded

    for owner in (forkserver._forkserver, preloaded):
        owner.ensure_running = lambda: None  # type: ignore[attr-defined]


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
    return wait_for(begin(folder, hub, overrides, death, world, said))


def wait_for(ranks: list[Any]) -> list[int]:
    """The exit codes of a run's processes. Once one has died the others are killed."""
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
    return begin_ranks(_run, world, folder, hub, overrides, death, said)


def begin_ranks(target: Callable[..., None], world: int, *arguments: Any) -> list[Any]:
    """Processes of `target(rank, world, port, *arguments)`, started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_server()
    ranks = [
        context.Process(target=target, args=(rank, world, port, *arguments))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


def be_rank(rank: int, world: int, port: int) -> None:
    """Set what torchrun sets in each of its processes."""
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
    }
    names |= {"MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {name: str(value) for name, value in names.items()}


def _run(
    rank: int,
    world: int,
    port: int,
    folder: Path,
    hub: Path,
    overrides: list[str],
    death: Death | None,
    said: Path | None,
) -> None:
    import datasets
    import torch
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from dynarank.commands.user_errors import user_errors
    from dynarank.runs.run import run

    _start_processes_as_usual()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if world > 1:
        be_rank(rank, world, port)
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
