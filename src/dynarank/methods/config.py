"""Schemas of the methods: types, ranges, and a line a field. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dynarank.allocation.config import BudgetConfig
from dynarank.methods.placement import PLACEMENTS
from dynarank.settings import Ge, Gt, Lt, OneOf, check_settings


@dataclass
class MethodConfig:
    """What every method states."""

    name: str = "???"  # OmegaConf's sign for what must be given
    """The method's name, one of dynarank.methods.METHODS."""
    lr_scale: Annotated[float, Gt(0)] = 1.0
    """Factor on the learning rate of the task, for a method that wants another than LoRA's;
    overruled by optimizer.lr."""

    def __post_init__(self) -> None:
        check_settings("method", self)

    def check_budget(self, budget: BudgetConfig) -> None:
        """Raise `ValueError` where a budget asks for what the method can do on no model."""


@dataclass
class LoRAConfig(MethodConfig):
    """LoRA (Hu et al., ICLR 2022), PEFT's; its mean rank is budget.target."""

    alpha: Annotated[float, Gt(0)] = 16.0
    """The scale of the update, over what alpha_over says. At a target of one and below it is alpha
    itself: there 1, at a higher learning rate, did better (docs/science.md)."""
    alpha_over: Annotated[str, OneOf(("target", "sqrt"))] = "target"
    """The scale is alpha / budget.target, or alpha / sqrt(target), as in rsLoRA. A target below
    one counts as one."""
    b_lr_ratio: Annotated[float, Gt(0)] = 1.0
    """Learning rate of B, as a multiple of A's (LoRA+, Hayou et al., 2024)."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """On the input of the adapters."""
    placement: Annotated[str, OneOf(PLACEMENTS)] = "even"
    """Which matrices get the parameters that the budget pays for: all alike (even), the queries'
    and values', those of attention, of feed-forward, of the lower or the upper half of the layers,
    or components drawn at random."""
    placement_seed: Annotated[int, Ge(0)] = 0
    """Decides what placement=random draws."""
    rank_pattern_from: str | None = None
    """A run's folder, or a PEFT LoRA adapter's: train on the ranks found there, which
    budget.target must be the mean of; null: on those of placement."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank_pattern_from is not None and self.placement != "even":
            raise ValueError(
                f"method.placement = {self.placement}: rank_pattern_from says where the components "
                "lie. Give one of the two"
            )


@dataclass
class AdaLoRAConfig(MethodConfig):
    """AdaLoRA (Zhang et al., ICLR 2023), PEFT's; ranks, spans and interval are the budget's."""

    alpha: Annotated[float, Gt(0)] = 32.0
    """The scale of the update is alpha / budget.init."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """On the input of the adapters."""
    beta: Annotated[float, Gt(0), Lt(1)] = 0.85  # PEFT takes no 0
    """Smoothing of sensitivity and of uncertainty."""
    orthogonality: Annotated[float, Ge(0)] = 0.5  # PEFT's default
    """Weight of the orthogonal regularization in the loss."""

    def check_budget(self, budget: BudgetConfig) -> None:
        _refuse_bounds(budget, "AdaLoRA", "min_rank", "max_rank")


@dataclass
class GlobalSvdConfig(MethodConfig):
    """A LoRA of rank budget.init, cut to its best singular components at the freeze."""

    alpha: Annotated[float, Gt(0)] = 16.0
    """The scale of the update is alpha / budget.init, and stays when components go."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """On the input of the adapters."""


@dataclass
class EvaConfig(MethodConfig):
    """EVA (Paischer et al., 2024), PEFT's: A and ranks from the variance of the layers' inputs."""

    alpha: Annotated[float, Gt(0)] = 16.0
    """The scale of the update is alpha / budget.target."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """On the input of the adapters."""
    rho: Annotated[float, Ge(1)] = 2.0  # PEFT's default, as tau
    """The most components a layer may get, as a multiple of budget.target; 1 redistributes none."""
    tau: Annotated[float, Gt(0), Lt(1)] = 0.99
    """The cosine similarity from one batch to the next with which a direction has held still."""
    batches: Annotated[int, Gt(0)] = 16
    """First batches that are read, again and again until the directions hold still."""

    def check_budget(self, budget: BudgetConfig) -> None:
        _refuse_bounds(budget, "EVA", "min_rank")
        if budget.target != int(budget.target) or budget.unit != "components":
            raise ValueError(
                f"EVA redistributes whole components, not budget.target={budget.target:g} in "
                f"{budget.unit}: give a whole number and budget.unit=components, or take "
                "method=gora"
            )


@dataclass
class GoraConfig(MethodConfig):
    """GoRA (He et al., 2025): ranks and start from the gradient of the first batches."""

    alpha: Annotated[float, Gt(0)] = 16.0
    """The scale of the update is alpha / budget.target."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """On the input of the adapters."""
    max_ratio: Annotated[float, Ge(1)] = 4.0  # as in the authors' runs
    """The most components a layer may get, as a multiple of budget.target."""
    gamma: Annotated[float, Ge(0)] = 0.05
    """How long the start is: about gamma times the mean gradient; 0 starts at the base."""
    directions: Annotated[str, OneOf(("random", "gradient"))] = "random"
    """A's rows: random, or the gradient's first right singular vectors (LoRA-GA's A)."""
    batches: Annotated[int, Gt(0)] = 16
    """First batches whose mean gradient is taken."""


@dataclass
class SoraConfig(MethodConfig):
    """SoRA (Ding et al., EMNLP 2023): a gate on every component, driven to zero."""

    alpha: Annotated[float, Gt(0)] = 16.0
    """The scale of the update is alpha / budget.init, and stays when components go."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """On the input of the adapters."""
    sparsity: Annotated[float, Ge(0)] = 1.0
    """lambda, the weight of the gates' absolute sum: after a step of rate lr, every gate comes
    nearer to zero by lr x lambda."""
    gates: Annotated[str, OneOf(("one", "normal"))] = "one"
    """Where the gates start: at one, or at random, standard normal, as in the authors' code."""


@dataclass
class DiffPruningConfig(MethodConfig):
    """Diff Pruning (Guo et al., ACL 2021): a sparse difference of all weights."""

    sparsity: Annotated[float, Ge(0)] = 40.0  # about the authors' 1.25e-7 a weight, on their BERT
    """lambda, the weight of the mean probability that a gate is open."""
    log_alpha: float = 5.0
    """Where every gate starts; 5 is open."""
    gate_lr: Annotated[float, Gt(0)] = 0.1
    """Peak learning rate of the gates, whatever the weights' is."""


@dataclass
class PromptConfig(MethodConfig):
    """Prompt tuning (Lester et al., EMNLP 2021), PEFT's."""

    reserved: Annotated[int, Gt(0)] = 132
    """Positions of the model that are left to the text, where positions are limited:
    task.max_length and a few."""


def _refuse_bounds(budget: BudgetConfig, method: str, *bounds: str) -> None:
    """Raise `ValueError` where the budget states a bound on ranks that a method cannot keep.

    Args:
        budget: as the run states it.
        method: its name, for the message.
        bounds: of `min_rank` and `max_rank`, those that it cannot keep.
    """
    without_bound = {"min_rank": 0, "max_rank": None}
    for bound in bounds:
        value = getattr(budget, bound)
        if value == without_bound[bound]:
            continue
        no_limit = "0" if bound == "min_rank" else "null"
        raise ValueError(
            f"budget.{bound} = {value}: {method} has no such limit. Take method=dora, or "
            f"budget.{bound}={no_limit}"
        )
