"""What every method offers the rest: it adapts a model, may allocate ranks, exports the result.

`Method` is the contract. Training, runs and sweeps call nothing else of a method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from dynarank.adapters.inject import find_linears, mark_trainable
from dynarank.adapters.layer import linear_shape
from dynarank.allocation.config import BudgetConfig, DemConfig
from dynarank.methods.config import MethodConfig
from dynarank.methods.protocols import Allocator
from dynarank.rounding import round_half_up

ConfigT = TypeVar("ConfigT", bound=MethodConfig)

TRAINED = "trained.safetensors"
"""What methods without a PEFT format write: what was trained, by the adapted model's own names."""


Inputs = Mapping[str, Tensor]
"""A batch as the model is called with it, labels among them."""


@dataclass(frozen=True, kw_only=True)
class MethodSize:
    """What a method takes on a model under a budget."""

    label: str = ""
    """What was solved for: ranks, a bottleneck, vectors."""
    matrices: int = 0
    """Layers adapted with ranks."""
    components: int = 0
    """Components of all layers at the end."""
    parameters: int = 0
    """Parameters of the adapter at the end; the task head is not counted."""
    note: str = ""


class Method(ABC, Generic[ConfigT]):
    """One way of fine-tuning. A subclass writes `change` and `export`; the rest has defaults.

    A run calls, in this order:

        adapt                     once: the model gets its adapters, and what trains is marked
        prepare                   once, in a new run alone: the first batches are read
        allocator                 once: what distributes ranks, if anything does
        observe_gradients         before every optimizer step
        penalty, or add_penalty_gradient in its place
        export                    at the end

    Args:
        config: the method's own settings.
        budget: how many components the model may keep; methods without ranks are matched to it.
        dem: the weight of DEM (Eq. 10), for the methods that have it.
    """

    takes_targets: ClassVar[bool] = True
    """Whether it needs to know the layers to adapt, to adapt them or to match their budget."""
    penalty_name: ClassVar[str] = "penalty"
    """What its penalty is logged as."""
    closed_form_penalty: ClassVar[bool] = False
    """Whether training calls `add_penalty_gradient` once a step, in place of `penalty` a batch."""

    def __init__(self, config: ConfigT, budget: BudgetConfig, dem: DemConfig) -> None:
        self.config = config
        self.budget = budget
        self.dem = dem
        self.model: nn.Module
        self.head: Sequence[str] = ()

    def adapt(self, model: nn.Module, targets: Sequence[str], head: Sequence[str]) -> nn.Module:
        """Adapt a model and mark what trains; return the model to train.

        Args:
            model: changed in place; some methods wrap it, too.
            targets: the layers to adapt, as `find_linears` reads them.
            head: full names of modules that are trained whole beside the adapters.

        Raises:
            ValueError: the targets, or the method, do not fit the model.
        """
        # All but the head is frozen here, so that `change` marks the method's own parameters alone.
        mark_trainable(model, head)
        self.head = head
        # Before `change`, which adds the method's own parameters.
        base = set(model.parameters()) - parameters_inside(model, head)
        self.model = self.change(model, targets)
        for parameter in self.model.parameters():
            if not parameter.requires_grad or parameter.dtype == torch.float32:
                continue
            if parameter in base:
                raise ValueError(
                    "it trains the base model's own weights, which must be float32: "
                    "set model.dtype=float32"
                )
            # In bfloat16 a weight does not move at usual learning rates.
            # By its data, for the method may hold the parameter already.
            parameter.data = parameter.data.float()
        return self.model

    @abstractmethod
    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        """Put the method's own parameters in, mark them trainable, and return the model to train.

        The rest is frozen already, except for the head, which is in `self.head`. The arguments are
        those of `adapt`.
        """

    @property
    def preparation_batches(self) -> int:
        """The number of batches that `prepare` reads; 0 where it is not called."""
        return 0

    def prepare(self, inputs: Sequence[Inputs]) -> None:
        """Read the first batches before training, once; a resumed run does not do it again.

        What it decides lies in the adapters' parameters and masks, which checkpoints hold. All
        processes call it with the same batches and the same random state.

        Raises:
            ValueError: the method cannot read this model.
        """

    def allocator(self, total_steps: int) -> Allocator | None:
        """Return what distributes ranks over so many optimizer steps; None if nothing does."""
        return None

    def lr_ratios(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return parameters whose learning rate is a multiple of the run's, and that multiple."""
        return []

    def rate_factor(self, total_steps: int) -> Callable[[int], float] | None:
        """Return what the adapters' rate is multiplied by after t of so many optimizer steps.

        None where nothing is multiplied. The head's rate is never.
        """
        return None

    def all_lr_ratios(
        self, lr: float, head_lr: float | None
    ) -> list[tuple[list[nn.Parameter], float]]:
        """Return `lr_ratios`, and the head's where its rate is not the adapters'.

        Args:
            lr: the run's peak rate.
            head_lr: the head's; None for the run's.
        """
        ratios = self.lr_ratios()
        head = self.head_parameters()
        if head_lr is not None:
            return [*ratios, (head, head_lr / lr)]
        # Any number of steps tells whether there is a factor.
        has_factor = self.rate_factor(1) is not None
        if has_factor:
            # A group of its own even at the run's rate: the factor is not for the head.
            return [*ratios, (head, 1.0)]
        return ratios

    def head_parameters(self) -> list[nn.Parameter]:
        """Return what is trained of the head, in the model's order."""
        head = parameters_inside(self.model, self.head)
        trained = []
        for parameter in self.model.parameters():
            if parameter in head and parameter.requires_grad:
                trained.append(parameter)
        return trained

    def observe_gradients(self) -> None:
        """Take in the gradients of the coming optimizer step, where an allocation needs them.

        They are unscaled, averaged over all processes, not yet clipped, and without the gradient
        of `add_penalty_gradient`. A loss scaler may skip the step.
        """

    def penalty(self, frozen: bool) -> Tensor | None:
        """Return what the method adds to the task's loss, a scalar; None for nothing.

        Args:
            frozen: whether the ranks are final.
        """
        return None

    def add_penalty_gradient(self, frozen: bool) -> Tensor | None:
        """Add the penalty's gradient to the parameters' own, and return the penalty.

        It is for methods with `closed_form_penalty`. Call it before an optimizer step, when the
        gradients of all its losses are there, unscaled, and before they are clipped.

        Returns:
            the penalty, a scalar without gradient; None where there is none.
        """
        raise NotImplementedError

    def ranks(self) -> dict[str, int]:
        """Return present ranks by module name, in model order; empty for a method without ranks."""
        return {}

    def adapter_parameters(self) -> int:
        """Count the parameters that the adaptation adds or changes at its final size.

        The task head is not counted.
        """
        head = parameters_inside(self.model, self.head)
        trained = {parameter for parameter in self.model.parameters() if parameter.requires_grad}
        return sum(parameter.numel() for parameter in trained - head)

    def size_under_budget(
        self, model: nn.Module, targets: Sequence[str], head: Sequence[str]
    ) -> MethodSize:
        """Adapt a model and return what that takes under the budget.

        The model may be on the meta device, without weights. The arguments are those of `adapt`.

        Raises:
            ValueError: the targets, or the method, do not fit the model.
        """
        nominal = nominal_parameters(model, targets, head, self.budget.target)
        self.adapt(model, targets, head)
        return self.adapted_size(nominal)

    def adapted_size(self, nominal: int) -> MethodSize:
        """Return the size of the adapted model.

        Args:
            nominal: parameters that the budget stands for (`nominal_parameters`).
        """
        return MethodSize(parameters=self.adapter_parameters())

    @abstractmethod
    def export(self, folder: Path, base: str, task_type: str | None) -> None:
        """Write what was trained into a folder.

        Args:
            folder: it is made.
            base: what the base model is loaded from, for formats that record it.
            task_type: PEFT's name of the task; None where PEFT has none.

        Raises:
            ValueError: there is nothing that can be loaded again.
        """

    def restore(
        self, model: nn.Module, head: Sequence[str], trained: Mapping[str, Tensor]
    ) -> nn.Module:
        """Adapt a model with trained weights, whose sizes they are; return the adapted model.

        Args:
            trained: the content of the file that `export` wrote, by parameter name.

        Raises:
            ValueError: the weights are not this method's, or not for this model.
        """
        raise ValueError(f"method={self.config.name} exports no weights of that form")


def parameters_inside(model: nn.Module, modules: Iterable[str]) -> set[nn.Parameter]:
    """Return the parameters of the named modules; in a set a parameter is compared by identity."""
    parameters: set[nn.Parameter] = set()
    for name in modules:
        parameters.update(model.get_submodule(name).parameters())
    return parameters


def nominal_parameters(
    model: nn.Module, targets: Sequence[str], head: Sequence[str], r: float
) -> int:
    """Return the parameters of `r` components in every target layer, rounded half up.

    This is the budget that methods without allocation are matched to. `model`, `targets` and `head`
    are those of `Method.adapt`; a component takes d_in + d_out parameters.
    """
    parameters_of_one_each = 0
    for name in find_linears(model, targets, head):
        d_in, d_out = linear_shape(model.get_submodule(name))
        parameters_of_one_each += d_in + d_out
    return round_half_up(r * parameters_of_one_each)


def matched_note(parameters: int, nominal: int) -> str:
    """Return how far a size that was matched to the budget is from it; empty below 0.05 %."""
    percent = 100 * (parameters / nominal - 1)
    return f"{percent:+.1f} % of the budget" if abs(percent) >= 0.05 else ""
