"""Predictions that are kept until a split is complete, and are then scored together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from dynarank.tasks.baselines import one_text


class RowScores(nn.Module):
    """Collects predictions by feature number; `compute` scores them together.

    Under distributed evaluation, the predictions of all processes are gathered, and those of rows
    that a sampler repeats count once.

    Args:
        evaluate: takes the numbers of the features seen, ascending, and their predictions, and
            returns scores by name.
    """

    def __init__(self, evaluate: Callable[[list[int], list[Any]], dict[str, float]]) -> None:
        super().__init__()
        self.evaluate = evaluate
        self.predictions: dict[int, Any] = {}
        self.collapsed: str | None = None
        """After `compute`: the one text that all rows share, in words; None if they differ."""

    def update(self, features: Sequence[int], predictions: Sequence[Any]) -> None:
        """Add the predictions of some features, which are given by number."""
        self.predictions.update(zip(features, predictions, strict=True))

    def gathered(self) -> tuple[list[int], list[Any]]:
        """Return features and predictions of all processes, in the order of the features."""
        parts: list[Any] = [self.predictions]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [None] * torch.distributed.get_world_size()
            # As objects: predictions are texts, spans or tuples, and of no one size.
            torch.distributed.all_gather_object(parts, self.predictions)
        merged: dict[int, Any] = {}
        for part in parts:
            merged |= part
        features = sorted(merged)
        return features, [merged[feature] for feature in features]

    def compute(self) -> dict[str, float]:
        """Return the scores by name.

        Raises:
            ValueError: There are no predictions.
        """
        features, predictions = self.gathered()
        if not features:
            raise ValueError("no predictions to score")
        self.collapsed = one_text(predictions)
        return self.evaluate(features, predictions)

    def reset(self) -> None:
        """Forget the predictions."""
        self.predictions = {}
        self.collapsed = None
