"""Text classification and regression: GLUE's tasks, and any rows of texts and a label."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
from dynarank.pretrained.hub import HubConfig
from dynarank.tasks.base import Batch, Collator, Task
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
from dynarank.tasks.features import cached_map, encode_texts
from dynarank.tasks.matthews import Matthews
from dynarank.tasks.sources import describe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class TextClassification(Task[TextClassificationConfig]):
    """One text, or a pair, to a class (cross-entropy) or to a number (mean squared error)."""

    auto_class = "AutoModelForSequenceClassification"
    peft_task_type = "SEQ_CLS"
    labels_in = ("label",)

    def __init__(self, config: TextClassificationConfig) -> None:
        super().__init__(config)
        self.class_names: list[str] = list(config.labels or ())
        """The classes, in the order of their numbers: those given, else those of the rows read."""

    def recorded_config(self) -> TextClassificationConfig:
        return replace(self.config, labels=self.class_names or None)

    def read(self, hub: HubConfig, seed: int = 0) -> None:
        super().read(hub, seed)
        if self._is_regression:
            self._check_numbers_differ()

    def _check_numbers_differ(self) -> None:
        """Raise `UserError` where all numbers of a split are alike: no correlation exists."""
        label = self.config.columns.label
        where = describe(self.config, self.config.train_split)
        numbers = np.unique(self.train[label][:])
        if len(numbers) == 1:
            raise UserError(
                f"{where}: {label} is {numbers[0]:g} in every row: there is nothing to learn. "
                "Is it the right column?"
            )
        for split, dataset in self.validation.items():
            numbers = np.unique(dataset[label][:])
            if len(numbers) == 1:
                raise UserError(
                    f"{describe(self.config, split)}: {label} is {numbers[0]:g} in all "
                    f"{len(dataset)} rows that validate, so that {self.config.select} has no "
                    "value. Give other rows to task.validation_file, or more by "
                    "task.validation_share or task.max_validation_rows"
                )

    @property
    def _is_regression(self) -> bool:
        return self.config.target == "number"

    def check_rows(self, dataset: Dataset, where: str, labelled: bool) -> Dataset:
        self.check_texts(dataset, where, self._text_columns())
        if not labelled:
            return dataset
        if self._is_regression:
            values = self._checked_numbers(dataset, where)
        else:
            values = self._checked_classes(dataset, where)
        label = self.config.columns.label
        return dataset.remove_columns(label).add_column(
            label, values.tolist(), new_fingerprint=_fingerprint_with_labels(dataset, values)
        )

    def _text_columns(self) -> list[str]:
        columns = self.config.columns
        return [columns.text] if columns.text_pair is None else [columns.text, columns.text_pair]

    def _checked_numbers(self, dataset: Dataset, where: str) -> np.ndarray:
        """Return the labels as numbers, (rows) float."""
        label = self.config.columns.label
        numbers = []
        for row, value in enumerate(dataset[label][:]):
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = float("nan")
            if not np.isfinite(number):
                raise UserError(
                    f"{where}, row {row}: {label} = {value!r} is not a finite number. "
                    "Mend or drop the row"
                )
            numbers.append(number)
        return np.asarray(numbers)

    def _checked_classes(self, dataset: Dataset, where: str) -> np.ndarray:
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

    def model_options(self) -> dict[str, Any]:
        if self._is_regression:
            return {"num_labels": 1, "problem_type": "regression"}
        return {
            "num_labels": len(self.class_names),
            "id2label": dict(enumerate(self.class_names)),
            "label2id": {name: index for index, name in enumerate(self.class_names)},
            "problem_type": "single_label_classification",
        }

    def features(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        labelled: bool = True,
    ) -> Dataset:
        text_columns = self._text_columns()
        label = self.config.columns.label
        max_length = self.config.max_length
        as_label = float if self._is_regression else int

        def encoded(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, Any]:
            texts = [batch[column] for column in text_columns]
            features = encode_texts(
                tokenizer, *texts, rows=rows, truncation=True, max_length=max_length
            )
            if labelled:
                features["labels"] = [as_label(value) for value in batch[label]]
            return features

        key = (text_columns, label, labelled, max_length, as_label)
        return cached_map(dataset, encoded, key, tokenizer)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def scores(self, split: str) -> LabelScores:
        classes = len(self.class_names)
        f1_kind: dict[str, Any] = {"task": "multiclass", "average": "macro"}
        if classes == 2:
            f1_kind = {"task": "binary"}
        makers: dict[str, Callable[[], Metric]] = {
            "accuracy": lambda: Accuracy(task="multiclass", num_classes=classes, average="micro"),
            "f1": lambda: F1Score(num_classes=classes, **f1_kind),
            "matthews": lambda: Matthews(num_classes=classes),
            "pearson": PearsonCorrCoef,
            "spearman": SpearmanCorrCoef,
            "rmse": lambda: MeanSquaredError(squared=False),
        }
        metrics = {name: makers[name]() for name in self.config.metrics}
        return LabelScores(metrics, self.class_names)

    def baseline(self, rows: Dataset) -> Baseline:
        """Return the scores of the most frequent class of the rows, or of their mean."""
        labels = torch.as_tensor(rows[self.config.columns.label][:])
        if self._is_regression:
            return self._mean_baseline(labels.float())
        scores = self.scores(self.config.splits[0])
        scores.update(torch.full_like(labels, int(labels.bincount().argmax())), labels)
        metrics = {name: float(value) for name, value in scores.compute().items()}
        return Baseline("majority class", metrics)

    def _mean_baseline(self, labels: Tensor) -> Baseline:
        """Return the scores of the labels' mean. A constant is correlated with nothing: 0."""
        metrics = dict.fromkeys(self.config.metrics, 0.0)
        if "rmse" in metrics:
            metrics["rmse"] = float(labels.std(correction=0))
        return Baseline("mean", metrics)

    def score(self, model: nn.Module, batch: Batch, scores: LabelScores) -> Tensor:
        output = model(**batch)
        logits = output.logits.float()  # (batch, classes), or (batch, 1)
        predicted = logits.squeeze(-1) if self._is_regression else logits.argmax(-1)
        scores.update(predicted, batch["labels"])
        loss: Tensor = output.loss
        return loss

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return each row's number, or the probabilities of its classes, (classes)."""
        logits = model(**batch).logits.float()
        predicted = logits.squeeze(-1) if self._is_regression else logits.softmax(-1)
        return list(predicted.cpu().numpy())

    def answers(
        self, dataset: Dataset, features: Dataset, predicted: Sequence[Any]
    ) -> list[dict[str, Any]]:
        if self._is_regression:
            return [{"score": float(value)} for value in predicted]
        return [self._class_record(probabilities) for probabilities in predicted]

    def _class_record(self, probabilities: np.ndarray) -> dict[str, Any]:
        record: dict[str, Any] = {"label": self.class_names[int(probabilities.argmax())]}
        for name, probability in zip(self.class_names, probabilities, strict=True):
            record[f"probability_{name}"] = float(probability)
        return record


def _fingerprint_with_labels(dataset: Dataset, values: np.ndarray) -> str:
    from datasets.fingerprint import Hasher

    return str(Hasher.hash((dataset._fingerprint, values.tolist())))
