"""Text classification and regression: GLUE's tasks, and any data set with one or two text columns and a label."""

from __future__ import annotations

from collections.abc import Callable
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
from dynarank.tasks.base import Batch, Task
from dynarank.tasks.config import TextClassificationConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class TextClassification(Task):
    """One text, or a pair, to a class (cross-entropy) or a number (mean squared error)."""

    auto_class = "AutoModelForSequenceClassification"
    peft_task_type = "SEQ_CLS"
    config: TextClassificationConfig

    def columns(self) -> list[str]:
        return [*self.config.text_columns, self.config.label_column]

    def column_field(self, column: str) -> str:
        return "task.text_columns" if column in self.config.text_columns else "task.label_column"

    def check_rows(self, dataset: Dataset, split: str) -> None:
        where = f"{self._source()}, split {split!r}"
        table = dataset.with_format("arrow")[:]
        for column in self.config.text_columns:
            if str(table[column].type) not in ("string", "large_string"):
                raise UserError(f"{where}: the column {column!r} holds {table[column].type}, not text")
            if table[column].null_count:
                row = table[column].is_null().index(True).as_py()
                raise UserError(f"{where}, row {row}: {column} is missing. Mend or drop the row")
        labels = table[self.config.label_column].to_numpy()
        if not np.issubdtype(labels.dtype, np.number):
            raise UserError(f"{where}: {self.config.label_column} holds {labels[0]!r}, not numbers")
        if self.config.labels is None:
            bad = ~np.isfinite(labels.astype(float))
            wanted = "a finite number"
        else:
            bad = ~np.isin(labels, np.arange(len(self.config.labels)))
            wanted = f"a class from 0 to {len(self.config.labels) - 1} ({', '.join(self.config.labels)})"
        if bad.any():
            row = int(bad.argmax())
            raise UserError(
                f"{where}, row {row}: {self.config.label_column} = {labels[row]} is not {wanted} "
                f"({int(bad.sum())} such rows). Mend the rows, or task.labels; a split without labels cannot be scored"
            )

    def model_options(self) -> dict[str, Any]:
        if self.config.labels is None:
            return {"num_labels": 1, "problem_type": "regression"}
        names = dict(enumerate(self.config.labels))
        return {
            "num_labels": len(names),
            "id2label": names,
            "label2id": {name: index for index, name in names.items()},
            "problem_type": "single_label_classification",
        }

    def encode(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.train = self._encode_split(self.train, tokenizer)
        self.validation = {split: self._encode_split(data, tokenizer) for split, data in self.validation.items()}

    def _encode_split(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        from datasets.fingerprint import Hasher

        columns, label = self.config.text_columns, self.config.label_column
        cast = float if self.config.labels is None else int

        def rows(batch: dict[str, list[Any]]) -> dict[str, Any]:
            encoded = tokenizer(*(batch[column] for column in columns), truncation=True, max_length=self.config.max_length)
            return {**encoded, "labels": [cast(value) for value in batch[label]]}

        # By our own key: the tokenizer's pickle, which datasets would hash, changes with every use of it.
        vocabulary = (
            tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else str(sorted(tokenizer.get_vocab().items()))
        )
        key = (dataset._fingerprint, type(tokenizer).__name__, vocabulary, columns, label, self.config.max_length, cast)
        return dataset.map(
            rows, batched=True, remove_columns=dataset.column_names, new_fingerprint=Hasher.hash(tuple(map(str, key)))
        )

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], Batch]:
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def metrics(self) -> MetricCollection:
        classes = len(self.config.labels or ())
        f1: dict[str, Any] = {"task": "binary"} if classes == 2 else {"task": "multiclass", "average": "macro"}
        makers: dict[str, Callable[[], Metric]] = {
            "accuracy": lambda: Accuracy(task="multiclass", num_classes=classes, average="micro"),
            "f1": lambda: F1Score(num_classes=classes, **f1),
            "matthews": lambda: MatthewsCorrCoef(task="multiclass", num_classes=classes),
            "pearson": PearsonCorrCoef,
            "spearman": SpearmanCorrCoef,
        }
        return MetricCollection({name: makers[name]() for name in self.config.metrics}, compute_groups=False)

    def score(self, model: nn.Module, batch: Batch, metrics: MetricCollection) -> Tensor:
        output = model(**batch)
        logits = output.logits.float()  # (batch, classes), or (batch, 1)
        metrics.update(logits.squeeze(-1) if self.config.labels is None else logits.argmax(-1), batch["labels"])
        loss: Tensor = output.loss
        return loss
