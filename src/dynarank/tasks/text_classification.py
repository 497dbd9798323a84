"""Text classification and regression: GLUE's tasks, and any data set with one or two text columns and a label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from torchmetrics import (
    Accuracy,
    F1Score,
    MatthewsCorrCoef,
    Metric,
    MetricCollection,
    PearsonCorrCoef,
    SpearmanCorrCoef,
)

from dynarank.errors import UserError
from dynarank.tasks.base import Batch, Task, cached_map
from dynarank.tasks.config import TextClassificationConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TextClassification(Task[TextClassificationConfig]):
    """One text, or a pair, to a class (cross-entropy) or a number (mean squared error)."""

    auto_class = "AutoModelForSequenceClassification"
    peft_task_type = "SEQ_CLS"
    labels_in = ("label",)

    def __init__(self, config: TextClassificationConfig) -> None:
        super().__init__(config)
        self.numbers = _numbers_of(config.labels or ())

    def check_rows(self, dataset: Dataset, where: str, labelled: bool) -> Dataset:
        self.check_texts(dataset, where, self._texts())
        if not labelled:
            return dataset
        label = self.config.columns.label
        values = (
            self._numbers(dataset, where)
            if self.config.target == "number"
            else self._classes(dataset, where)
        )
        return dataset.remove_columns(label).add_column(
            label, values.tolist(), new_fingerprint=_with_labels(dataset, values)
        )

    def _texts(self) -> list[str]:
        columns = self.config.columns
        return [columns.text] if columns.text_pair is None else [columns.text, columns.text_pair]

    def _numbers(self, dataset: Dataset, where: str) -> np.ndarray:
        label = self.config.columns.label
        numbers = []
        for row, value in enumerate(dataset[label][:]):
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = float("nan")
            if not np.isfinite(number):
                raise UserError(
                    f"{where}, row {row}: {label} = {value!r} is not a finite number. Mend or drop the row"
                )
            numbers.append(number)
        return np.asarray(numbers)

    def _classes(self, dataset: Dataset, where: str) -> np.ndarray:
        """Class numbers. Where no labels are named, those of the first rows checked, the training rows, are the classes."""
        label = self.config.columns.label
        values = dataset[label][:]
        feature = dataset.features[label]
        if self.config.labels is None:
            self.config.labels, self.numbers = _find_classes(feature, values, f"{where}: {label}")
        numbers = _numbers_in(feature, self.config.labels) or self.numbers
        classes = np.asarray([numbers.get(_name(value), -1) for value in values])
        if (classes < 0).any():
            row, names = int((classes < 0).argmax()), self.config.labels
            raise UserError(
                f"{where}, row {row}: {label} = {values[row]!r} is not a class from 0 to {len(names) - 1} "
                f"({', '.join(names)}) ({int((classes < 0).sum())} such rows). Mend the rows, or task.labels; a split "
                "without labels cannot be scored"
            )
        return classes

    def model_options(self) -> dict[str, Any]:
        if self.config.target == "number":
            return {"num_labels": 1, "problem_type": "regression"}
        names = dict(enumerate(self.config.labels or ()))
        return {
            "num_labels": len(names),
            "id2label": names,
            "label2id": {name: index for index, name in names.items()},
            "problem_type": "single_label_classification",
        }

    def features(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        labelled: bool = True,
    ) -> Dataset:
        texts, label = self._texts(), self.config.columns.label
        cast = float if self.config.target == "number" else int

        def encoded(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, Any]:
            tokens = tokenizer(
                *(batch[column] for column in texts),
                truncation=True,
                max_length=self.config.max_length,
            )
            return (
                {**tokens, "labels": [cast(value) for value in batch[label]]}
                if labelled
                else dict(tokens)
            )

        return cached_map(
            dataset, encoded, (texts, label, labelled, self.config.max_length, cast), tokenizer
        )

    def collator(
        self, tokenizer: PreTrainedTokenizerBase
    ) -> Callable[[list[dict[str, Any]]], Batch]:
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def scores(self, split: str) -> MetricCollection:
        classes = len(self.config.labels or ())
        f1: dict[str, Any] = (
            {"task": "binary"} if classes == 2 else {"task": "multiclass", "average": "macro"}
        )
        makers: dict[str, Callable[[], Metric]] = {
            "accuracy": lambda: Accuracy(task="multiclass", num_classes=classes, average="micro"),
            "f1": lambda: F1Score(num_classes=classes, **f1),
            "matthews": lambda: MatthewsCorrCoef(task="multiclass", num_classes=classes),
            "pearson": PearsonCorrCoef,
            "spearman": SpearmanCorrCoef,
        }
        return MetricCollection(
            {name: makers[name]() for name in self.config.metrics}, compute_groups=False
        )

    def score(self, model: nn.Module, batch: Batch, scores: MetricCollection) -> Tensor:
        output = model(**batch)
        logits = output.logits.float()  # (batch, classes), or (batch, 1)
        scores.update(
            logits.squeeze(-1) if self.config.target == "number" else logits.argmax(-1),
            batch["labels"],
        )
        loss: Tensor = output.loss
        return loss

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        logits = model(**batch).logits.float()
        return list(
            (logits.squeeze(-1) if self.config.target == "number" else logits.softmax(-1))
            .cpu()
            .numpy()
        )

    def answers(
        self, dataset: Dataset, features: Dataset, predicted: Sequence[Any]
    ) -> list[dict[str, Any]]:
        if self.config.target == "number":
            return [{"score": float(value)} for value in predicted]
        names = self.config.labels or []
        return [
            {
                "label": names[int(p.argmax())],
                **{f"probability_{name}": float(v) for name, v in zip(names, p, strict=True)},
            }
            for p in predicted
        ]


def _name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _numbers_of(names: Sequence[str]) -> dict[str, int]:
    """Class numbers by name, and by the number itself unless some number is a name."""
    by_name = {name: index for index, name in enumerate(names)}
    by_number = {str(index): index for index in range(len(names))}
    return by_name if by_name.keys() & by_number.keys() else by_name | by_number


def _numbers_in(feature: Any, names: Sequence[str]) -> dict[str, int]:
    """Class numbers by the numbers that a class feature holds, which never mean names; empty for other features."""
    theirs = getattr(feature, "names", None) or ()
    if set(theirs) <= set(names):
        return {str(index): names.index(name) for index, name in enumerate(theirs)}
    return {str(index): index for index in range(len(names))}


def _find_classes(
    feature: Any, values: Sequence[Any], where: str
) -> tuple[list[str], dict[str, int]]:
    """The classes' names and numbers: the data set's own, else the distinct values, numbers in their order."""
    if getattr(feature, "names", None):
        return list(feature.names), _numbers_of(feature.names)
    missing = next(
        (row for row, value in enumerate(values) if value is None or value == "" or value != value),
        None,
    )
    if missing is not None:
        raise UserError(f"{where} is missing in row {missing}. Mend or drop the row")
    found = sorted({_name(value) for value in values})
    with suppress(ValueError):
        found.sort(key=float)
    if len(found) < 2:
        raise UserError(
            f"{where} is {found[0]!r} in every row: there is nothing to learn. Is it the right column?"
        )
    if len(found) > max(100, len(values) // 2):
        raise UserError(
            f"{where} has {len(found)} distinct values in {len(values)} rows: not classes. For numbers, use "
            "task=text_regression (task.target=number); else name the right column in task.columns.label"
        )
    return found, {name: index for index, name in enumerate(found)}


def _with_labels(dataset: Dataset, values: np.ndarray) -> str:
    from datasets.fingerprint import Hasher

    return str(Hasher.hash((dataset._fingerprint, values.tolist())))
