"""What ends a run in the middle and is nobody's bug: said in one message, with the last checkpoint, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dynarank.checkpoints.storage import newest_valid
from dynarank.config.schema import TrainConfig
from dynarank.errors import UserError
from dynarank.training.nonfinite import NonFiniteError


@contextmanager
def failures_said(config: TrainConfig, folder: Path) -> Iterator[None]:
    """Turn known failures of training into `UserError`; let everything else through."""
    try:
        yield
    except NonFiniteError as error:
        raise UserError(
            f"training stopped before the update, at {error}. Lower optimizer.lr = {config.lr:g}, or look at that "
            f"layer and batch. Last good checkpoint: {_kept(folder)}"
        ) from None
    except (MemoryError, RuntimeError) as error:  # torch's own are RuntimeErrors
        if isinstance(error, UserError):
            raise
        if _is_out_of_memory(error):
            raise UserError(
                f"out of memory ({_first_line(error)}). Lower trainer.batch_size = {config.batch_size} and raise "
                f"trainer.accumulate = {config.trainer.accumulate} by the same factor, which trains alike and starts over "
                f"(resume=never); or make room and go on (resume=auto). Last checkpoint: {_kept(folder)}"
            ) from error
        if "DataLoader worker" in str(error):
            raise UserError(
                f"a process that makes batches ended: {_first_line(error)}. Most often memory is short: lower "
                f"trainer.workers = {config.trainer.workers}, and go on with resume=auto. Last checkpoint: {_kept(folder)}"
            ) from error
        raise


def _is_out_of_memory(error: BaseException) -> bool:
    cpu = "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or cpu


def _kept(folder: Path) -> str:
    return str(newest_valid(folder / "checkpoints")[0] or "none yet")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
