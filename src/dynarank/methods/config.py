"""Schemas of the methods: types, ranges, and a line a field. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dynarank.adapters import STARTS
from dynarank.allocation.config import SCORES


@dataclass
class MethodConfig:
    """What every method states."""

    name: str = "???"
    """The method's name, one of dynarank.methods.METHODS."""


@dataclass
class DoRAConfig(MethodConfig):
    """Dynamic rank distribution (Mao et al., ACL 2024)."""

    alpha: float | None = 8.0
    """The scale of the update is alpha / budget.init, and stays when components go. null:
    8 (init / 12)^1.5, with which a component starts as large under any budget as in the published
    setting, r8."""
    dropout: float = 0.1
    """On the input of the adapters."""
    beta: float = 0.9
    """Smoothing of the importance scores (Eq. 8)."""
    score: str = "relative"
    """What a component is judged by: relative (the paper's share of the layer's update), absolute
    (the plain norm), or sensitivity (AdaLoRA's)."""
    init: str = "paper"
    """paper (c = 0, A and B random), or lora (c = 1, B = 0), which learns from the first step."""
    c_lr_ratio: float = 1.0
    """Learning rate of c, as a multiple of the others'."""

    def alpha_at(self, init: int) -> float:
        """Return alpha, resolved for the components that a layer starts with."""
        return 8.0 * (init / 12) ** 1.5 if self.alpha is None else self.alpha

    def __post_init__(self) -> None:
        if self.alpha is not None:
            _check_above_zero("alpha", self.alpha)
        _check_above_zero("c_lr_ratio", self.c_lr_ratio)
        _check_one_of("score", self.score, SCORES)
        _check_one_of("init", self.init, STARTS)
        _check_share("dropout", self.dropout)
        _check_share("beta", self.beta)


@dataclass
class LoRAConfig(MethodConfig):
    """LoRA (Hu et al., ICLR 2022), PEFT's; its rank is budget.target."""

    alpha: float = 16.0
    """The scale of the update is alpha / rank."""
    dropout: float = 0.1
    """On the input of the adapters."""

    def __post_init__(self) -> None:
        _check_above_zero("alpha", self.alpha)
        _check_share("dropout", self.dropout)


@dataclass
class AdaLoRAConfig(MethodConfig):
    """AdaLoRA (Zhang et al., ICLR 2023), PEFT's; ranks, spans and interval are the budget's."""

    alpha: float = 32.0
    """The scale of the update is alpha / budget.init."""
    dropout: float = 0.1
    """On the input of the adapters."""
    beta: float = 0.85
    """Smoothing of sensitivity and of uncertainty."""
    orthogonality: float = 0.5
    """Weight of the orthogonal regularization in the loss."""

    def __post_init__(self) -> None:
        _check_above_zero("alpha", self.alpha)
        _check_share("dropout", self.dropout)
        if not 0 < self.beta < 1:
            raise ValueError(f"method.beta = {self.beta}: must lie between 0 and 1")
        if self.orthogonality < 0:
            raise ValueError(f"method.orthogonality = {self.orthogonality}: must be 0 or more")


@dataclass
class PromptConfig(MethodConfig):
    """Prompt tuning (Lester et al., EMNLP 2021), PEFT's."""

    reserved: int = 132
    """Positions of the model that are left to the text, where positions are limited:
    task.max_length and a few."""

    def __post_init__(self) -> None:
        if self.reserved < 1:
            raise ValueError(f"method.reserved = {self.reserved}: the text needs positions too")


def _check_above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"method.{name} = {value}: must be above 0")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"method.{name} = {value}: must lie in [0, 1)")


def _check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"method.{name} = {value!r}: must be one of {', '.join(known)}")
