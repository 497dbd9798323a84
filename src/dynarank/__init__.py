"""Dynamic rank distribution for low-rank adapters (DoRA of Mao et al., ACL 2024).

This is not NVIDIA's weight-decomposed DoRA, PEFT's `use_dora`.

The names below are the library. They need PyTorch alone. They are imported on first use, so that a
command's help and its messages about a wrong configuration appear at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynarank.adapters.compress import compress
    from dynarank.adapters.cutting import cut_optimizer, cut_tensors, cut_to_kept
    from dynarank.adapters.folding import fold, merge
    from dynarank.adapters.inject import adapter_layers, find_linears, inject, mark_trainable
    from dynarank.adapters.layer import DoRALinear
    from dynarank.adapters.peft_format import write_peft_adapter
    from dynarank.allocation.allocator import RankAllocator
    from dynarank.allocation.dem import add_dem_gradient, dem_penalty
    from dynarank.allocation.importance import importance, smooth
    from dynarank.allocation.orthogonality import add_orthogonality_gradient
    from dynarank.allocation.schedule import BudgetSchedule, budget_schedule

__version__ = "0.2.0"

_MODULES = {
    "DoRALinear": "adapters.layer",
    "adapter_layers": "adapters.inject",
    "compress": "adapters.compress",
    "cut_optimizer": "adapters.cutting",
    "cut_tensors": "adapters.cutting",
    "cut_to_kept": "adapters.cutting",
    "find_linears": "adapters.inject",
    "inject": "adapters.inject",
    "mark_trainable": "adapters.inject",
    "RankAllocator": "allocation.allocator",
    "add_dem_gradient": "allocation.dem",
    "add_orthogonality_gradient": "allocation.orthogonality",
    "dem_penalty": "allocation.dem",
    "importance": "allocation.importance",
    "smooth": "allocation.importance",
    "BudgetSchedule": "allocation.schedule",
    "budget_schedule": "allocation.schedule",
    "fold": "adapters.folding",
    "merge": "adapters.folding",
    "write_peft_adapter": "adapters.peft_format",
}
"""The module, inside this package, that defines each public name."""
# Written out, although _MODULES has the same names: type checkers read a plain list alone.
__all__ = [
    "BudgetSchedule",
    "DoRALinear",
    "RankAllocator",
    "adapter_layers",
    "add_dem_gradient",
    "add_orthogonality_gradient",
    "budget_schedule",
    "compress",
    "cut_optimizer",
    "cut_tensors",
    "cut_to_kept",
    "dem_penalty",
    "find_linears",
    "fold",
    "importance",
    "inject",
    "mark_trainable",
    "merge",
    "smooth",
    "write_peft_adapter",
]


def __getattr__(name: str) -> Any:
    # Python calls this only for a name that the module does not hold (PEP 562).
    if name not in _MODULES:
        raise AttributeError(f"module 'dynarank' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dynarank.{_MODULES[name]}"), name)
