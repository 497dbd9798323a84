"""What all classification has in common, whatever is classified: classes, loss, scores, records."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import (
    Accuracy,
    F1Score,
    MeanSquaredError,
    Metric,
    PearsonCorrCoef,
    SpearmanCorrCoef,
)

from dynarank.errors import UserError
from dynarank.tasks.base import Batch, Task
from dynarank.tasks.baselines import Baseline, LabelScores
from dynarank.tasks.class_names import (
    check_single_values,
    describe_classes,
    find_classes,
    numbers_by_value,
    numbers_of_feature,
    value_name,
)
from dynarank.tasks.config import TextClassificationConfig
from dynarank.tasks.image_config import ImageClassificationConfig
from dynarank.tasks.matthews import Matthews

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT", bound=TextClassificationConfig | ImageClassificationConfig)


class Classification(Task[ConfigT]):
    """An input to a class, by cross-entropy."""

    labels_in = ("label",)

    def __init__(self, config: ConfigT) -> None:
        super().__init__(config)
        self.class_names: list[str] = list(config.labels or ())
        """The classes, in the order of their numbers: those given, else those of the rows read."""

    def recorded_config(self) -> ConfigT:
        return replace(self.config, labels=self.class_names or None)

    def checked_classes(self, dataset: Dataset, where: str) -> np.ndarray:
        """Return the class number of each row, (rows) int.

        Where the configuration names no classes, they are those of the first rows checked, which
        are the training rows.
        """
        label = self.config.columns.label
        values = dataset[label][:]
        check_single_values(values, where, label)
        feature = dataset.features[label]
        are_found = not self.class_names
        if are_found:
            self.class_names = find_classes(feature, values, f"{where}: {label}")
        numbers = numbers_of_feature(feature, self.class_names)
        if not numbers:
            numbers = numbers_by_value(self.class_names)
        classes = np.asarray([numbers.get(value_name(value), -1) for value in values])
        unknown = np.flatnonzero(classes < 0)
        if len(unknown):
            raise UserError(
                f"{where}, row {unknown[0]}: {label} = {values[unknown[0]]!r} is not a class from "
                f"0 to {len(self.class_names) - 1} ({', '.join(self.class_names)}) "
                f"({len(unknown)} such rows). Mend the rows, or task.labels; a split without "
                "labels cannot be scored"
            )
        if are_found:
            log.info("%s: %s", label, describe_classes(self.class_names, classes.tolist()))
        return classes

    def with_labels(self, dataset: Dataset, values: np.ndarray) -> Dataset:
        """Return the rows with these labels, (rows), in the place of those that were read."""
        from datasets.fingerprint import Hasher

        label = self.config.columns.label
        fingerprint = str(Hasher.hash((dataset._fingerprint, values.tolist())))
        # Taken out and put in anew, since its type may change from text to number.
        return dataset.remove_columns(label).add_column(
            label, values.tolist(), new_fingerprint=fingerprint
        )

    def model_options(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.class_names),
            "id2label": dict(enumerate(self.class_names)),
            "label2id": {name: index for index, name in enumerate(self.class_names)},
            # Else transformers guesses it from the first labels, and keeps its guess.
            "problem_type": "single_label_classification",
        }

    def scores(self, split: str) -> LabelScores:
        return label_scores(self.config.metrics, self.class_names)

    def baseline(self, rows: Dataset) -> Baseline:
        """Return the scores of the most frequent class of the rows."""
        labels = torch.as_tensor(rows[self.config.columns.label][:])
        # The first process alone asks, so that nothing may wait for the others.
        scores = label_scores(self.config.metrics, self.class_names, synchronized=False)
        most_frequent = int(labels.bincount().argmax())
        scores.update(torch.full_like(labels, most_frequent), labels)
        metrics = {name: float(value) for name, value in scores.compute().items()}
        return Baseline("majority class", metrics)

    def score(self, model: nn.Module, batch: Batch, scores: LabelScores) -> Tensor:
        output = model(**self.inputs(batch))
        scores.update(output.logits.float().argmax(-1), batch["labels"])
        loss: Tensor = output.loss
        return loss

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return the probabilities of each row's classes, (classes)."""
        logits = model(**self.inputs(batch)).logits.float()
        return list(logits.softmax(-1).cpu().numpy())

    def answers(
        self, dataset: Dataset, features: Dataset, predicted: Sequence[Any]
    ) -> list[dict[str, Any]]:
        return [self._class_record(probabilities) for probabilities in predicted]

    def _class_record(self, probabilities: np.ndarray) -> dict[str, Any]:
        record: dict[str, Any] = {"label": self.class_names[int(probabilities.argmax())]}
        for name, probability in zip(self.class_names, probabilities, strict=True):
            record[f"probability_{name}"] = float(probability)
        return record


def label_scores(
    names: Sequence[str], class_names: Sequence[str], synchronized: bool = True
) -> LabelScores:
    """Return fresh scores of classes or numbers.

    Args:
        names: metrics, some of those in `tasks.config.METRICS` for a class or a number.
        class_names: by class number; empty for numbers.
        synchronized: whether `compute` takes in what other processes saw, and waits for them.
    """
    classes = len(class_names)
    common: dict[str, Any] = {"sync_on_compute": synchronized}
    f1_kind: dict[str, Any] = {"task": "multiclass", "average": "macro"}
    if classes == 2:
        # As GLUE has it: the F1 of class 1.
        f1_kind = {"task": "binary"}
    makers: dict[str, Callable[[], Metric]] = {
        "accuracy": lambda: Accuracy(
            task="multiclass", num_classes=classes, average="micro", **common
        ),
        "f1": lambda: F1Score(num_classes=classes, **f1_kind, **common),
        "matthews": lambda: Matthews(num_classes=classes, **common),
        "pearson": lambda: PearsonCorrCoef(**common),
        "spearman": lambda: SpearmanCorrCoef(**common),
        "rmse": lambda: MeanSquaredError(squared=False, **common),
    }
    metrics = {name: makers[name]() for name in names}
    return LabelScores(metrics, class_names, synchronized)
