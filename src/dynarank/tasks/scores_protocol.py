"""What training asks of the object that scores a split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Scores(Protocol):
    """An object that collects a split's predictions and scores them.

    torchmetrics' collections and our `RowScores` are such objects. One that has an attribute
    `collapsed` says with it, once computed, which one prediction all rows share, if they do.
    """

    def compute(self) -> Mapping[str, Any]:
        """Return the scores by name."""

    def reset(self) -> None:
        """Forget the predictions."""
