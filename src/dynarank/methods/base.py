"""What a method is to the rest: it adapts a model, may add to the loss and allocate ranks, and exports the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dynarank.adapters.inject import find_linears, mark_trainable
from dynarank.adapters.layer import linear_shape
from dynarank.allocation.config import BudgetConfig, DemConfig
from dynarank.allocation.schedule import BudgetSchedule
from dynarank.methods.config import MethodConfig

ConfigT = TypeVar("ConfigT", bound=MethodConfig)

TRAINED = "trained.safetensors"
"""What methods without a PEFT format write: the trained parameters by the adapted model's own names."""


class Allocator(Protocol):
    """What distributes ranks over a run: `RankAllocator`, or a baseline's in the same form."""

    t: int
    frozen: bool
    sizes: list[int]
    """Components that each layer starts with."""
    schedule: BudgetSchedule
    agree: Callable[[Tensor], Tensor]
    """From the components that this process would keep, (n) bool, to those that all processes keep."""

    @property
    def ema(self) -> Tensor:
        """Present scores of all components, (n)."""

    def step(self) -> bool:
        """Account for one optimizer step, its gradients still in place; returns whether it pruned."""

    def budget(self) -> float:
        """The scheduled mean number of components a layer, now."""

    def active_count(self) -> Tensor:
        """Number of components of the model that are not zero now, a scalar."""

    def ranks(self) -> dict[str, int]:
        """Rank by module name, in model order."""

    def allowance(self, t: int) -> int:
        """What may be kept after step t: components, or parameters where these are counted."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state."""


class Method(ABC, Generic[ConfigT]):
    """One way of fine-tuning. Life: `adapt` once, then `allocator` and `penalty` in training, `export` at the end."""

    takes_targets: ClassVar[bool] = True
    """Whether it needs to know the layers to adapt, to adapt them or to match their budget."""
    penalty_name: ClassVar[str] = "penalty"
    """What its penalty is logged as."""

    def __init__(self, config: ConfigT, budget: BudgetConfig, dem: DemConfig) -> None:
        self.config, self.budget, self.dem = config, budget, dem
        self.model: nn.Module
        self.head: Sequence[str] = ()

    def adapt(self, model: nn.Module, targets: Sequence[str], head: Sequence[str]) -> nn.Module:
        """Adapt a model and mark what trains, the modules named in `head` among it; returns the model to train.

        Raises:
            ValueError: the targets, or the method, do not fit the model.
        """
        mark_trainable(model, head)
        self.head = head
        apart = {p for name in head for p in model.get_submodule(name).parameters()}
        base = set(model.parameters()) - apart
        self.model = self.change(model, targets)
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.dtype != torch.float32:
                if parameter in base:
                    raise ValueError(
                        "it trains the base model's own weights, which must be float32: set model.dtype=float32"
                    )
                parameter.data = (
                    parameter.data.float()
                )  # in bfloat16 a weight does not move at usual rates
        return self.model

    @abstractmethod
    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        """Put the method's own parameters in and mark them trainable; the rest is frozen already, but for the head."""

    def allocator(self, total_steps: int) -> Allocator | None:
        """What distributes the ranks over a run of that many optimizer steps; None if the method does not."""
        return None

    def lr_ratios(self) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters whose learning rate is a multiple of the run's, and that multiple."""
        return []

    def penalty(self, frozen: bool) -> Tensor | None:
        """What the method adds to the task's loss, a scalar; None for nothing. `frozen`: the ranks are final."""
        return None

    def ranks(self) -> dict[str, int]:
        """Present rank by module name, in model order; empty for a method without ranks."""
        return {}

    def adapter_parameters(self) -> int:
        """Parameters that the adaptation adds or changes at its final size; the task head is not counted."""
        head = {id(p) for name in self.head for p in self.model.get_submodule(name).parameters()}
        return sum(
            p.numel() for p in self.model.parameters() if p.requires_grad and id(p) not in head
        )

    def export(self, folder: Path, base: str, task_type: str) -> None:
        """Write what was trained into a folder. Raises `ValueError` where there is nothing that can be loaded again."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        trained = {
            name: p.detach().cpu().contiguous()
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }
        save_file(trained, folder / TRAINED, metadata={"format": "pt"})


def nominal_parameters(
    model: nn.Module, targets: Sequence[str], head: Sequence[str], r: int
) -> int:
    """What `r` components in every target layer take: the budget that other methods are matched to."""
    return r * sum(
        sum(linear_shape(model.get_submodule(name))) for name in find_linears(model, targets, head)
    )
