"""Bad luck and odd data in whole runs: how they end, what is said, and what is kept."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import begin, start
from lightning.pytorch.callbacks import Timer
from tiny import CONF, configure

import dynarank.runs.run as run_module
from dynarank.checkpoints import lock as run_lock
from dynarank.checkpoints.lock import locked
from dynarank.checkpoints.storage import newest_valid
from dynarank.commands.predict import main as predict_main
from dynarank.commands.user_errors import user_errors
from dynarank.errors import UserError
from dynarank.runs import export
from dynarank.runs.run import _seconds, run
from dynarank.runs.summary import summary_rows
from dynarank.training.module import FineTuning


def failing(error: Exception, step: int) -> Callable[..., Any]:
    original = FineTuning.training_step

    def training_step(self: FineTuning, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == step:
            raise error
        return original(self, batch, batch_idx)

    return training_step


OUT_OF_MEMORY = [
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 1 GiB"
    ),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"  # noqa: E501
    ),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_keeps_the_last_checkpoint_and_says_what_to_lower(
    error: Exception, hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FineTuning, "training_step", failing(error, 2))
    said = r"out of memory \(.+\)\. Lower trainer\.batch_size = 16 and raise trainer\.accumulate = 1 .*step-00000002\.ckpt$"  # noqa: E501
    with pytest.raises(UserError, match=said):
        run(configure(tmp_path, hub_root, "checkpoint.every_steps=1"))
    assert newest_valid(tmp_path / "checkpoints")[0] == tmp_path / "checkpoints/step-00000002.ckpt"


def test_a_bug_in_a_step_keeps_its_trace(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FineTuning, "training_step", failing(RuntimeError("a bug"), 1))
    with pytest.raises(RuntimeError, match="a bug"):
        run(configure(tmp_path, hub_root))


def kill_a_worker(rank: int) -> None:
    from killing import at_call

    def act() -> None:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGKILL)
        time.sleep(1)

    at_call(torch.optim.AdamW, "step", 5, act)


def test_a_worker_that_dies_ends_the_run_with_the_last_checkpoint_named(
    hub_root: Path, tmp_path: Path
) -> None:
    said, settings = (
        tmp_path / "said.txt",
        ["trainer.workers=1", "trainer.batch_size=4", "checkpoint.every_steps=2"],
    )
    assert start(tmp_path / "run", hub_root, settings, kill_a_worker, said=said) == [2]
    (line,) = [one for one in said.read_text().splitlines() if one.startswith("error: ")]
    assert re.search(
        r"a process that makes batches ended: DataLoader worker.*trainer\.workers = 1.*step-0\d+4\.ckpt$",  # noqa: E501
        line,
    )
    assert "Traceback" not in said.read_text()


def stop(rank: int) -> None:
    from killing import at_call

    at_call(torch.optim.AdamW, "step", 5, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def test_a_second_run_in_a_folder_refuses_until_the_first_is_gone(
    hub_root: Path, tmp_path: Path
) -> None:
    """Also while the first one's workers are left behind."""
    settings = ["trainer.workers=1", "trainer.batch_size=4", "checkpoint.every_steps=2"]
    (process,) = begin(tmp_path, hub_root, settings, stop)
    while not (tmp_path / "checkpoints/step-00000004.json").is_file():
        time.sleep(0.1)
        assert process.is_alive()
    with pytest.raises(
        UserError, match=rf"{tmp_path}: another run is at work there \(process {process.pid} on "
    ):
        run(configure(tmp_path, hub_root))
    process.kill()
    process.join()
    assert start(tmp_path, hub_root, [*settings, "resume.path=auto"]) == [0]
    assert json.loads((tmp_path / "metrics.json").read_text())["resumed_at"] == [4]


def test_a_file_system_without_locks_is_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.FileLock, "acquire", refuse)
    with locked(tmp_path):
        assert "its file system knows no locks (No locks available)" in caplog.text


def test_a_run_out_of_time_before_the_freeze_is_no_result(
    hub_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: Iterator[int] = iter(range(1000))
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_: 0.0 if next(calls) < 2 else 3601.0)
    results = run(configure(tmp_path, hub_root, "trainer.max_time=00:01:00:00"))
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert (record["at_budget"], results.total_steps) == (False, 6)
    assert record["selected"]["step"] < 3
    assert "BUDGET NOT REACHED" in summary_rows(results)["matthews"]
    assert not (tmp_path / "adapter").exists()
    assert newest_valid(tmp_path / "checkpoints")[0] is not None
    (tmp_path / "in.csv").write_text("sentence\na cat\n")
    with pytest.raises(SystemExit, match="2"):
        predict_main(
            [
                str(tmp_path),
                "--input",
                str(tmp_path / "in.csv"),
                "--output",
                str(tmp_path / "out.csv"),
            ]
        )
    assert "ended before its ranks were frozen" in capsys.readouterr().err


def test_a_run_out_of_time_goes_on_when_it_is_given_more(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Iterator[int] = iter(range(1000))
    with monkeypatch.context() as hurried:
        hurried.setattr(Timer, "time_elapsed", lambda *_: 0.0 if next(calls) < 2 else 3601.0)
        first = run(configure(tmp_path, hub_root, "trainer.max_time=00:01:00:00"))
    assert not first.at_budget
    again = configure(tmp_path, hub_root, "trainer.max_time=00:01:00:00", "resume.path=auto")
    with monkeypatch.context() as spent:
        spent.setattr(run_module, "_seconds", lambda span: 0)
        assert run(again).seconds == first.seconds  # it has no time left, and is finished
    assert _seconds("01:02:03:04") == 93784
    longer = configure(tmp_path, hub_root, "trainer.max_time=00:03:00:00", "resume.path=auto")
    results = run(longer)
    assert results.at_budget
    assert len(results.resumed_at) == 1
    assert (tmp_path / "adapter").is_dir()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=250k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_one_message_and_room_lets_it_go_on(
    small_disk: Path, hub_root: Path, tmp_path: Path
) -> None:
    said, settings = tmp_path / "said.txt", ["checkpoint.every_steps=1", "checkpoint.keep=9"]
    assert start(small_disk / "run", hub_root, settings, said=said) == [2]
    text = said.read_text()
    assert len([line for line in text.splitlines() if line.startswith("error: ")]) == 1, text
    assert "No space left" in text
    assert "resume=auto" in text
    assert "Traceback" not in text
    assert newest_valid(small_disk / "run" / "checkpoints")[0] is not None
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert start(small_disk / "run", hub_root, [*settings, "resume.path=auto"], said=said) == [0], (
        said.read_text()
    )


@pytest.mark.parametrize("argument", ["task=cola", "-m"])
def test_ctrl_c_before_a_run_begins_leaves_no_trace(
    argument: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", argument])
    with pytest.raises(SystemExit, match="130"), user_errors(CONF):
        raise KeyboardInterrupt
    assert capsys.readouterr().err.startswith("stopped")


ODD = [
    "👩‍👩‍👧 🎉 the cat",
    "הכלב רץ",
    "القطة جلست على السجادة",
    "e\u0301\u0301\u0301 \u202eabc\u202c \ufeff",
    "x" * 100_000,
    "cat " * 25_000,
    ".",
    "\x1b[31mred\x1b[0m",
]


def test_odd_texts_and_one_validation_row_are_no_trouble(hub_root: Path, tmp_path: Path) -> None:
    rows = [{"text": text, "label": row % 2} for row, text in enumerate(ODD * 4)]
    for name, part in (("train", rows), ("val", rows[:1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    own = [
        f"task.train_file={tmp_path / 'train.jsonl'}",
        f"task.validation_file={tmp_path / 'val.jsonl'}",
    ]
    results = run(
        configure(tmp_path / "c", hub_root, "task=text_classification", "task.max_length=32", *own)
    )
    assert results.metrics["accuracy"] in (0.0, 1.0)
    assert results.at_budget
    numbers = configure(
        tmp_path / "r", hub_root, "task=text_regression", "task.max_length=32", *own
    )
    with pytest.raises(UserError, match=r"label is 0 in all 1 rows .* pearson has no value"):
        run(numbers)


class RustError(Exception):
    """As libraries written in Rust raise it: words alone."""


@pytest.mark.parametrize(
    "error",
    [
        RustError("No space left on device (os error 28)"),
        OSError(errno.ENOSPC, "No space left on device"),
        RustError("I/O error: Disk quota exceeded (os error 122)"),
    ],
    ids=str,
)
def test_a_disk_that_is_full_at_the_export_is_one_message(
    error: Exception, hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(export, "save_processor", full)
    said = r"^the disk is full \(.*\)\. .*resume=auto\. Last checkpoint: .*step-00000006\.ckpt$"
    with pytest.raises(UserError, match=said):
        run(configure(tmp_path, hub_root))
    monkeypatch.undo()
    assert run(configure(tmp_path, hub_root, "resume.path=auto")).resumed_at == [6]


def test_a_rank_that_is_killed_ends_the_run_with_the_checkpoint_and_the_way_on(
    hub_root: Path, tmp_path: Path
) -> None:
    said = tmp_path / "said.txt"
    settings = ["trainer=ddp", "trainer.batch_size=4", "checkpoint.every_steps=2"]
    ranks = begin(tmp_path / "run", hub_root, settings, kill_the_second, world=2, said=said)
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [2, -9]
    text = said.read_text()
    assert re.search(
        r"error: another process of the run ended \(.*\)\. .*resume=auto\. Last checkpoint: "
        r".*step-00000004\.ckpt",
        text,
    ), text
    assert "Traceback" not in text


def kill_the_second(rank: int) -> None:
    from killing import at_call

    if rank == 1:
        at_call(torch.optim.AdamW, "step", 6)


def test_a_lock_that_is_a_folder_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "run.lock").mkdir()
    with pytest.raises(UserError, match=r"run\.lock is a folder there"), locked(tmp_path):
        pytest.fail("held")
