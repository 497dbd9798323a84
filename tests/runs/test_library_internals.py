"""What a run needs of torch's and Lightning's private names still means what it is taken for."""

from __future__ import annotations

import signal
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies.launchers import subprocess_script

from dynarank.runs.library_internals import (
    cpu_computes_bf16,
    end_other_ranks,
    has_cpp_compiler,
)


def test_whether_the_cpu_has_bfloat16_is_answered() -> None:
    assert cpu_computes_bf16() in (True, False)


def test_a_compiler_that_is_not_there_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "g++")
    assert has_cpp_compiler()

    def refuse() -> None:
        from torch._inductor.exc import InvalidCxxCompiler

        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", refuse)
    assert not has_cpp_compiler()


def test_the_ranks_that_lightning_started_are_told_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False
    )
    launcher = trainer.strategy.launcher
    assert isinstance(launcher, subprocess_script._SubprocessScriptLauncher)
    told: list[int] = []

    class Rank:
        pid = 1

        def send_signal(self, number: int) -> None:
            told.append(number)

        def poll(self) -> None:
            return None

    rank: Any = Rank()
    monkeypatch.setattr(launcher, "procs", [rank])
    end_other_ranks(trainer)
    assert told == [signal.SIGTERM]


def test_a_single_process_has_no_other_ranks() -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    end_other_ranks(trainer)
    assert torch.distributed.is_available()
