"""What a run needs of torch and Lightning that they do not document: each behind one function.

`tests/runs/test_library_internals.py` checks that every name still means what is said here.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import lightning.pytorch as pl


def cpu_computes_bf16() -> bool:
    """Return whether this CPU has instructions for bfloat16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_cpp_compiler() -> bool:
    """Return whether torch.compile finds a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def end_other_ranks(trainer: pl.Trainer) -> None:
    """End the ranks that Lightning started from this process, which wait for it."""
    # Lightning takes seconds to import, and the doctor asks this module about the CPU alone.
    from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(signal.SIGTERM)
