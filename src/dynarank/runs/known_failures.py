"""What ends a run in the middle and is nobody's bug: one message, with the last checkpoint."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dynarank.checkpoints.storage import newest_valid
from dynarank.config.schema import TrainConfig
from dynarank.errors import UserError, first_line
from dynarank.run_folder import CHECKPOINTS
from dynarank.training.nonfinite import NonFiniteError

FULL_DISK_WORDS = re.compile(
    rf"\(os error ({errno.ENOSPC}|{errno.EDQUOT})\)|No space left on device"
)


@contextmanager
def explain_failures(config: TrainConfig, folder: Path) -> Iterator[None]:
    """Turn known failures of training into `UserError`, and let everything else through.

    Args:
        config: whose settings the remedies name.
        folder: the run's, whose last checkpoint is named.
    """
    try:
        yield
    except NonFiniteError as error:
        raise UserError(
            f"training stopped at {error}. Lower optimizer.lr = {config.lr:g}, "
            f"or look at that layer and batch. Last good checkpoint: {_last_checkpoint(folder)}"
        ) from None
    except UserError:  # says already what to do
        raise
    except Exception as error:
        message = _remedy(error, config)
        if message is None:
            raise
        raise UserError(f"{message} Last checkpoint: {_last_checkpoint(folder)}") from error


def _remedy(error: BaseException, config: TrainConfig) -> str | None:
    """Return what a failure means and what to do about it; None for one that is not known."""
    if _is_out_of_memory(error):
        return (
            f"out of memory ({first_line(error)}). Lower trainer.batch_size = {config.batch_size} "
            f"and raise trainer.accumulate = {config.trainer.accumulate} by the same factor, which "
            "trains alike and starts over (resume=never); or make room and go on (resume=auto)."
        )
    if is_disk_full(error):
        return (
            f"the disk is full ({first_line(error)}). What was written before is whole: make room, "
            "and go on with resume=auto."
        )
    if _is_lost_rank(error):
        return (
            f"another process of the run ended ({first_line(error)}). See what it said last, and "
            "go on with resume=auto."
        )
    # torch has no type of its own for it.
    if "DataLoader worker" in str(error):
        return (
            f"a process that makes batches ended: {first_line(error)}. Most often memory is short: "
            f"lower trainer.workers = {config.trainer.workers}, and go on with resume=auto."
        )
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch has a type for GPUs alone. A CPU's shortage is a RuntimeError with these words.
    return "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error)


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error comes from a full disk or quota.

    Libraries written in Rust say so in words alone.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if FULL_DISK_WORDS.search(str(error)):
            return True
        # Libraries raise errors of their own in place of the system's, which stands behind them.
        error = error.__cause__ or error.__context__
    return False


def _is_lost_rank(error: BaseException) -> bool:
    """Return whether a collective operation failed because another rank is gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    # gloo raises a plain RuntimeError with these words.
    words = str(error)
    return "Connection closed by peer" in words or "Connection reset by peer" in words


def _last_checkpoint(folder: Path) -> str:
    newest, _, _ = newest_valid(folder / CHECKPOINTS)
    return "none yet" if newest is None else str(newest)
