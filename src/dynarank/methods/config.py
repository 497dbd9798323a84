"""Schemas of the methods: types, ranges, and a line a field. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dynarank.adapters import STARTS
from dynarank.allocation.config import SCORES
from dynarank.methods.placement import PLACEMENTS
from dynarank.settings import Ge, Gt, Lt, OneOf, check_settings


@dataclass
class MethodConfig:
    """What every method states."""

    name: str = "???"
    """The method's name, one of dynarank.methods.METHODS."""

    def __post_init__(self) -> None:
        check_settings("method", self)


@dataclass
class DoRAConfig(MethodConfig):
    """Dynamic rank distribution (Mao et al., ACL 2024)."""

    alpha: Annotated[float | None, Gt(0)] = 8.0
    """The scale of the update is alpha / budget.init, and stays when components go. null:
    8 (init / 12)^1.5, with which a component starts as large under any budget as in the published
    setting, r8."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """On the input of the adapters."""
    beta: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Smoothing of the importance scores (Eq. 8)."""
    score: Annotated[str, OneOf(SCORES)] = "relative"
    """What a component is judged by: relative (the paper's share of the layer's update), absolute
    (the plain norm), or sensitivity (AdaLoRA's)."""
    init: Annotated[str, OneOf(STARTS)] = "paper"
    """paper (c = 0, A and B random), or lora (c = 1, B = 0), which learns from the first step."""
    c_lr_ratio: Annotated[float, Gt(0)] = 1.0
    """Learning rate of c, as a multiple of the others'."""

    def alpha_at(self, init: int) -> float:
        """Return alpha, resolved for the components that a layer starts with."""
        return 8.0 * (init / 12) ** 1.5 if self.alpha is None else self.alpha


@dataclass
class LoRAConfig(MethodConfig):
    """LoRA (Hu et al., ICLR 2022), PEFT's; its mean rank is budget.target."""

    alpha: Annotated[float, Gt(0)] = 16.0
    """The scale of the update is alpha / rank; below one component a matrix, alpha."""
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


@dataclass
class AdaLoRAConfig(MethodConfig):
    """AdaLoRA (Zhang et al., ICLR 2023), PEFT's; ranks, spans and interval are the budget's."""

    alpha: Annotated[float, Gt(0)] = 32.0
    """The scale of the update is alpha / budget.init."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """On the input of the adapters."""
    beta: Annotated[float, Gt(0), Lt(1)] = 0.85
    """Smoothing of sensitivity and of uncertainty."""
    orthogonality: Annotated[float, Ge(0)] = 0.5
    """Weight of the orthogonal regularization in the loss."""


@dataclass
class PromptConfig(MethodConfig):
    """Prompt tuning (Lester et al., EMNLP 2021), PEFT's."""

    reserved: Annotated[int, Gt(0)] = 132
    """Positions of the model that are left to the text, where positions are limited:
    task.max_length and a few."""
