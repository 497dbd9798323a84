"""What a model scores that has learned nothing, and whether one predicts the same for every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

if TYPE_CHECKING:
    from datasets import Dataset

    from dynarank.tasks.base import Task

ALIKE = 0.01
"""Numbers count as one where they spread by less than this share of the labels' own spread."""


@dataclass(frozen=True)
class Baseline:
    """The scores of the best answer that does not look at the input."""

    name: str
    """What that answer is: 'majority class', 'mean', 'no answer'."""
    metrics: dict[str, float]
    """Its scores by the task's metrics; those that it has none of are missing."""

    def as_record(self) -> dict[str, Any]:
        """Return it as metrics.json holds it."""
        return {"name": self.name, "metrics": self.metrics}


def baseline_record(task: Task[Any], rows: Mapping[str, Dataset]) -> dict[str, Any] | None:
    """Return what a model scores that has learned nothing, as metrics.json holds it.

    Args:
        task: the run's.
        rows: labelled rows by split; the names of several splits' metrics carry the split's.

    Returns:
        None where the task knows no such score, and where there are no rows.
    """
    metrics: dict[str, float] = {}
    name = None
    for split, labelled in rows.items():
        baseline = task.baseline(labelled)
        if baseline is None:
            return None
        name = baseline.name
        label = task.config.split_label(split) if len(rows) > 1 else ""
        metrics |= {label + metric: value for metric, value in baseline.metrics.items()}
    return None if name is None else Baseline(name, metrics).as_record()


class PredictionSpread(Metric):
    """The smallest and the largest prediction and label, over all batches and processes."""

    full_state_update = False
    low: Tensor
    high: Tensor
    lowest_label: Tensor
    highest_label: Tensor
    rows: Tensor

    def __init__(self, synchronized: bool = True) -> None:
        super().__init__(sync_on_compute=synchronized)
        for name, kind in (("low", "min"), ("lowest_label", "min")):
            self.add_state(name, torch.tensor(float("inf")), dist_reduce_fx=kind)
        for name, kind in (("high", "max"), ("highest_label", "max")):
            self.add_state(name, torch.tensor(float("-inf")), dist_reduce_fx=kind)
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Take in a batch: classes or numbers, (batch), and their labels, (batch)."""
        # To the states' device and float32: predictions may be whole numbers.
        predicted_values = predicted.to(self.low)
        label_values = labels.to(self.low)
        self.low = torch.minimum(self.low, predicted_values.min())
        self.high = torch.maximum(self.high, predicted_values.max())
        self.lowest_label = torch.minimum(self.lowest_label, label_values.min())
        self.highest_label = torch.maximum(self.highest_label, label_values.max())
        self.rows += len(predicted)

    def compute(self) -> Tensor:
        """Return the smallest and largest prediction, the labels' spread, and the rows, (4)."""
        labels = self.highest_label - self.lowest_label
        return torch.stack([self.low, self.high, labels, self.rows.to(self.low)])


class LabelScores(nn.Module):
    """`Scores` of classes or numbers: torchmetrics' own, and whether all predictions are one.

    Args:
        metrics: by name.
        class_names: by class number; empty where numbers are predicted.
        synchronized: whether `compute` takes in what other processes saw; as the metrics' own.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric],
        class_names: Sequence[str] = (),
        synchronized: bool = True,
    ) -> None:
        super().__init__()
        by_name: dict[str, Metric | MetricCollection] = dict(metrics)
        # Groups would share the states of metrics that look alike after the first batch.
        self.metrics = MetricCollection(by_name, compute_groups=False)
        self.spread = PredictionSpread(synchronized)
        self.class_names = list(class_names)
        self.collapsed: str | None = None
        """After `compute`: the one prediction that all rows share, in words; None if they differ.
        """

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Take in a batch: classes or numbers, (batch), and their labels, (batch)."""
        self.metrics.update(predicted, labels)
        self.spread.update(predicted, labels)

    def compute(self) -> dict[str, Any]:
        """Return the scores by name."""
        self.collapsed = self._one_prediction()
        scores: dict[str, Any] = self.metrics.compute()
        return scores

    def _one_prediction(self) -> str | None:
        low, high, spread_of_labels, rows = self.spread.compute().tolist()
        if self.class_names:
            if low != high:
                return None
            return f"all {rows:,.0f} rows {self.class_names[int(low)]!r}"
        if high - low < ALIKE * spread_of_labels:
            return f"all {rows:,.0f} rows between {low:.4g} and {high:.4g}"
        return None

    def reset(self) -> None:
        """Forget the predictions."""
        self.metrics.reset()
        self.spread.reset()
        self.collapsed = None


def one_text(texts: Sequence[Any], of: str = "rows") -> str | None:
    """Return in words the one text that all rows share; None where they differ or are no texts.

    Args:
        texts: one for each of what `of` names.
        of: what they are predictions of.
    """
    if not texts or not isinstance(texts[0], str):
        return None
    first = texts[0]
    if any(text != first for text in texts):
        return None
    shown = repr(first[:60]) if first else "empty"
    return f"all {len(texts):,} {of} {shown}"


def collapsed(scores: Any) -> str | None:
    """Return the one prediction of `Scores` that are computed; None where they differ.

    A family whose scores have no `collapsed` says nothing of it.
    """
    shared: str | None = getattr(scores, "collapsed", None)
    return shared
