"""The scores of several splits together: their names, and whether a model collapsed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from torch import nn

from dynarank.tasks.base import Task
from dynarank.tasks.baselines import collapsed
from dynarank.tasks.scores_protocol import Scores

SELECTION = "selection"
"""The logged score that picks the best epoch.

It is the task's selecting metric at budget, and NaN before, which never wins.
"""
COLLAPSED = "val/collapsed"
"""The logged number that is 1 where all predictions of a split are one, and else 0."""
PLACE = ("epoch", "step")
"""Logged with each row, both counted from 1: Lightning's own begin with 0."""


class SplitScores(nn.ModuleList):
    """`Scores` of some splits of a task, in their order.

    Args:
        task: what they are scores of.
        splits: names of splits. Where there are several, a metric's name carries the split's.
    """

    def __init__(self, task: Task[Any], splits: Collection[str]) -> None:
        # As a ModuleList, the metrics' states move to the device with the LightningModule.
        super().__init__(task.scores(split) for split in splits)
        several = len(splits) > 1
        self.labels = [task.config.split_label(split) if several else "" for split in splits]

    def reset(self) -> None:
        """Forget the predictions."""
        for scores in self:
            cast("Scores", scores).reset()

    def compute(self) -> dict[str, float]:
        """Return the scores of all splits by name."""
        values = {}
        for label, scores in zip(self.labels, self, strict=True):
            for name, value in cast("Scores", scores).compute().items():
                values[label + name] = float(value)
        return values

    def collapsed(self) -> str | None:
        """Return the one prediction that all rows of a split share, in words, if there is one.

        It tells of what was computed last.
        """
        for scores in self:
            alike = collapsed(scores)
            if alike is not None:
                return alike
        return None
