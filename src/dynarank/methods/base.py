"""What a method is to the rest: it adapts a model, may add to the loss and allocate ranks, and exports the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor, nn

from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.config import BudgetConfig, DemConfig
from dynarank.methods.config import MethodConfig

ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class Method(ABC, Generic[ConfigT]):
    """One way of fine-tuning. Life: `adapt` once, then `allocator` and `penalty` in training, `export` at the end."""

    def __init__(self, config: ConfigT, budget: BudgetConfig, dem: DemConfig) -> None:
        self.config, self.budget, self.dem = config, budget, dem

    @abstractmethod
    def adapt(self, model: nn.Module, targets: Sequence[str], head: Sequence[str]) -> None:
        """Change the model in place and mark what trains: the adaptation, and the modules named in `head`.

        Raises:
            ValueError: the targets do not fit the model.
        """

    def allocator(self, total_steps: int) -> RankAllocator | None:
        """What distributes the ranks over a run of that many optimizer steps; None if the method does not."""
        return None

    def lr_ratios(self) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters whose learning rate is a multiple of the run's, and that multiple."""
        return []

    def penalty(self) -> Tensor | None:
        """What the method adds to the task's loss until its ranks are frozen, a scalar; None for nothing."""
        return None

    @abstractmethod
    def ranks(self) -> dict[str, int]:
        """Present rank by module name, in model order; empty for a method without ranks."""

    @abstractmethod
    def adapter_parameters(self) -> int:
        """Parameters that the adaptation adds once pruned and folded; the task head is not counted."""

    @abstractmethod
    def export(self, model: nn.Module, folder: Path, base: str, task_type: str, head: Sequence[str]) -> None:
        """Write what was trained into a folder. Raises `ValueError` where there is nothing that can be loaded again."""
