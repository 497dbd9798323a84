"""Schemas of the methods: types, ranges, and a line a field. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class MethodConfig:
    """What every method states."""

    name: str = "???"
    """The method's class (dynarank.methods.METHODS)."""


@dataclass
class DoRAConfig(MethodConfig):
    """Dynamic rank distribution (Mao et al., ACL 2024)."""

    alpha: float = 8.0
    """The update's scale is alpha / budget.init, and stays when components go."""
    dropout: float = 0.1
    """On the adapters' input."""
    beta: float = 0.9
    """Smoothing of the importance scores (Eq. 8)."""

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"method.alpha = {self.alpha}: must be above 0")
        for name in ("dropout", "beta"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"method.{name} = {getattr(self, name)}: must lie in [0, 1)")
