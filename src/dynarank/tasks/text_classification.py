"""Text classification and regression: GLUE's tasks, and any rows of texts and a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.tasks.base import Batch, Collator
from dynarank.tasks.baselines import Baseline, LabelScores
from dynarank.tasks.classification import Classification
from dynarank.tasks.config import TextClassificationConfig
from dynarank.tasks.features import cached_map, encode_texts
from dynarank.tasks.sources import describe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TextClassification(Classification[TextClassificationConfig]):
    """One text, or a pair, to a class (cross-entropy) or to a number (mean squared error)."""

    auto_class = "AutoModelForSequenceClassification"
    peft_task_type = "SEQ_CLS"

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
        for split, dataset in self.test.items():
            numbers = np.unique(dataset[label][:])
            if len(numbers) == 1:
                setting = "test_split" if self.config.train_file is None else "test_file"
                raise UserError(
                    f"{describe(self.config, split)}: {label} is {numbers[0]:g} in all "
                    f"{len(dataset)} rows of the test, so that {self.config.select} has no value. "
                    f"Give other rows to task.{setting}, or null"
                )

    def check_sample(self, split: str, rows: np.ndarray) -> None:
        label = self.config.columns.label
        if not self._is_regression:
            return
        numbers = np.unique(np.asarray(self.validation[split][label][:])[rows])
        if len(numbers) == 1:
            raise UserError(
                f"task.validation_sample = {self.config.validation_sample}: {label} is "
                f"{numbers[0]:g} in all rows of this sample of {describe(self.config, split)}, so "
                f"that {self.config.select} has no value. Take more rows, or all of them: null"
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
            values = self.checked_classes(dataset, where)
        return self.with_labels(dataset, values)

    def _text_columns(self) -> list[str]:
        columns = self.config.columns
        return [columns.text] if columns.text_pair is None else [columns.text, columns.text_pair]

    def _checked_numbers(self, dataset: Dataset, where: str) -> np.ndarray:
        """Return the labels as numbers, (rows) float."""
        label = self.config.columns.label
        numbers = []
        for row, value in enumerate(dataset[label][:]):
            try:
                # Values of csv files are texts.
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

    def model_options(self) -> dict[str, Any]:
        if self._is_regression:
            return {"num_labels": 1, "problem_type": "regression"}
        return super().model_options()

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
        # The mean squared error takes labels of floating point, and cross-entropy whole numbers.
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

    def baseline(self, rows: Dataset) -> Baseline:
        """Return the scores of the most frequent class of the rows, or of their mean."""
        if not self._is_regression:
            return super().baseline(rows)
        labels = torch.as_tensor(rows[self.config.columns.label][:]).float()
        # A constant is correlated with nothing.
        metrics = dict.fromkeys(self.config.metrics, 0.0)
        if "rmse" in metrics:
            # Divided by n: what the mean itself is wrong by on these rows.
            metrics["rmse"] = float(labels.std(correction=0))
        return Baseline("mean", metrics)

    def score(self, model: nn.Module, batch: Batch, scores: LabelScores) -> Tensor:
        if not self._is_regression:
            return super().score(model, batch, scores)
        output = model(**batch)
        scores.update(output.logits.float().squeeze(-1), batch["labels"])
        loss: Tensor = output.loss
        return loss

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return each row's number, or the probabilities of its classes, (classes)."""
        if not self._is_regression:
            return super().predict(model, batch)
        numbers = model(**batch).logits.float().squeeze(-1)
        return list(numbers.cpu().numpy())

    def answers(
        self, dataset: Dataset, features: Dataset, predicted: Sequence[Any]
    ) -> list[dict[str, Any]]:
        if self._is_regression:
            return [{"score": float(value)} for value in predicted]
        return super().answers(dataset, features, predicted)
