"""What a task is to the rest: data that is read and checked, then encoded; a model class; a score; predictions."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn

from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.tasks.config import TaskConfig
from dynarank.tasks.sources import cut_validation, describe, open_splits

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]
ConfigT = TypeVar("ConfigT", bound=TaskConfig)


class Scores(Protocol):
    """What collects a split's predictions and scores them; torchmetrics' collections and our `RowScores` are such."""

    def compute(self) -> Mapping[str, Any]:
        """Scores by name."""

    def reset(self) -> None:
        """Forget the predictions."""


class Task(ABC, Generic[ConfigT]):
    """A task family. Life: `read` (before any model is loaded), `encode`, then batches through `score`.

    `train` and `validation` (by split) hold the rows as they are; `train_features` and `validation_features` what a
    model takes: a row's, or several windows of it, in the rows' order.
    """

    auto_class: ClassVar[str]
    """transformers' auto class of the models that fit."""
    peft_task_type: ClassVar[str]
    has_head: ClassVar[bool] = True
    """Whether the auto class brings a task head of its own, to be trained in full."""
    labels_in: ClassVar[Sequence[str]]
    """Roles of the columns to be predicted."""
    length_setting: ClassVar[str] = "task.max_length"
    """What bounds the tokens of a feature, for errors."""
    host_columns: ClassVar[Sequence[str]] = ()
    """Columns of the features that batches do without."""

    def __init__(self, config: ConfigT) -> None:
        self.config = config
        self.train: Dataset
        self.validation: dict[str, Dataset] = {}
        self.train_features: Dataset
        self.validation_features: dict[str, Dataset] = {}

    def read(self, hub: HubConfig, seed: int = 0) -> None:
        """Load the splits and check their rows. `seed` picks the sample where rows are limited.

        Raises:
            UserError: the source, a split or a column is missing, a split is empty, or a row is unusable (its number
                is named).
        """
        config, splits = self.config, open_splits(self.config, hub)
        needed = [config.train_split, *([] if config.one_file else config.splits)]
        checked = cut_validation(
            config, {split: self._checked(splits, split) for split in needed}, seed
        )
        self.train = _sample(checked[config.train_split], config.max_train_rows, seed)
        for split in config.splits:
            self.validation[split] = _sample(checked[split], config.max_validation_rows, seed)

    def _checked(self, splits: Mapping[str, Dataset], split: str) -> Dataset:
        if split not in splits:
            raise UserError(
                f"task.path = {self.config.path} has no split {split!r}: it has {', '.join(splits)}"
            )
        return self.check(splits[split], describe(self.config, split), labelled=True)

    def check(self, dataset: Dataset, where: str, labelled: bool) -> Dataset:
        """The rows in the form that `features` takes, once they are known to be usable; else `UserError`.

        Args:
            where: the rows' source, for errors.
            labelled: whether the column to be predicted must be there.
        """
        if len(dataset) == 0:
            raise UserError(f"{where} is empty")
        dataset = (
            dataset.flatten()
            if any("." in column for column in self.columns(labelled).values())
            else dataset
        )
        for role, column in self.columns(labelled).items():
            if column not in dataset.column_names:
                raise UserError(
                    f"{where} has no column {column!r}; it has {', '.join(dataset.column_names)}. "
                    f"Name yours in task.columns.{role}"
                )
        self._check_ids(dataset, where)
        return self.check_rows(dataset, where, labelled)

    def _check_ids(self, dataset: Dataset, where: str) -> None:
        column = asdict(self.config)["columns"]["id"]
        if column is None or column not in dataset.column_names:
            return
        ids = np.asarray(dataset[column][:], dtype=object)
        values, counts = np.unique(ids.astype(str), return_counts=True)
        if (counts > 1).any():
            value = values[counts > 1][0]
            rows = np.flatnonzero(ids.astype(str) == value)
            raise UserError(
                f"{where}, rows {rows[0]} and {rows[1]}: {column} = {str(value)!r} twice "
                f"({int((counts > 1).sum())} such ids). Make them unique, or set task.columns.id=null"
            )

    def check_texts(self, dataset: Dataset, where: str, columns: Sequence[str]) -> None:
        """Raise `UserError` where a column holds no texts, or a row lacks one; for files, also where one is blank."""
        table = dataset.with_format("arrow")[:]
        own = self.config.train_file is not None
        for column in columns:
            if str(table[column].type) not in ("string", "large_string"):
                raise UserError(
                    f"{where}: the column {column!r} holds {table[column].type}, not text"
                )
            if table[column].null_count:
                row = table[column].is_null().index(True).as_py()
                raise UserError(f"{where}, row {row}: {column} is missing. Mend or drop the row")
            blank = (
                [row for row, text in enumerate(table[column].to_pylist()) if not text.strip()]
                if own
                else []
            )
            if blank:
                raise UserError(
                    f"{where}, row {blank[0]}: {column} is empty ({len(blank)} such rows). Mend or drop them"
                )

    def columns(self, labelled: bool) -> dict[str, str]:
        """The columns that the task needs: the data's name by role (a field of `task.columns`)."""
        roles = {**asdict(self.config)["columns"]}
        own_ids = labelled and self.config.train_file is not None  # the hub's copies may lack them
        unneeded = {*(() if own_ids else ("id",)), *(() if labelled else self.labels_in)}
        return {
            role: column
            for role, column in roles.items()
            if column is not None and role not in unneeded
        }

    def generated_lengths(self) -> dict[str, int]:
        """Tokens that are written at most, by the setting that says so; none where nothing is generated."""
        return {}

    @abstractmethod
    def check_rows(self, dataset: Dataset, where: str, labelled: bool) -> Dataset:
        """The rows in the form that `features` takes; `UserError` for rows that cannot be used, naming the first."""

    @abstractmethod
    def model_options(self) -> dict[str, Any]:
        """What `from_pretrained` is told about the task (number of labels, ...)."""

    def encode(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        """Turn every split into features, once: cached on disk by content, tokenizer and settings."""
        self.train_features = self.features(self.train, tokenizer, model)
        self.validation_features = {
            split: self.features(rows, tokenizer, model) for split, rows in self.validation.items()
        }

    @abstractmethod
    def features(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        labelled: bool = True,
    ) -> Dataset:
        """A data set's features, with `input_ids` among their columns."""

    def rows_of(self, features: Dataset) -> np.ndarray:
        """The row that each feature comes from, (features)."""
        return np.arange(len(features))

    @abstractmethod
    def collator(
        self, tokenizer: PreTrainedTokenizerBase
    ) -> Callable[[list[dict[str, Any]]], Batch]:
        """What makes a batch of features, padded to the longest among them."""

    def inputs(self, batch: Batch) -> Batch:
        """What the model takes of a batch."""
        return batch

    def loss_terms(self, batch: Batch) -> Tensor:
        """Number of terms that the batch's loss is the mean of, a scalar; so losses of shares of a batch add up."""
        return batch["input_ids"].new_tensor(len(batch["input_ids"]))

    @abstractmethod
    def scores(self, split: str) -> nn.Module:
        """Fresh `Scores` of a validation split."""

    @abstractmethod
    def score(self, model: nn.Module, batch: Batch, scores: Any) -> Tensor:
        """Run the model on a batch, add its predictions to the scores, return the loss (a scalar)."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """What the model says of each feature of a batch, on the CPU."""

    @abstractmethod
    def answers(
        self, dataset: Dataset, features: Dataset, predicted: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """What `predict` said of all features, as one record of plain values for each row."""

    def artifacts(self, split: str, scores: Any) -> dict[str, Any]:
        """Files that a run leaves beside its scores, as name and JSON content (for .jsonl: a list, an item a line)."""
        return {}


ENCODING = 1
"""Raised when features come out otherwise than before, so that older ones on disk are not taken up."""


def _sample(dataset: Dataset, rows: int | None, seed: int) -> Dataset:
    return (
        dataset
        if rows is None or rows >= len(dataset)
        else dataset.shuffle(seed=seed).select(range(rows))
    )


def cached_map(
    dataset: Dataset, function: Callable[..., Any], key: Sequence[Any], tokenizer: Any
) -> Dataset:
    """`dataset.map(function)` over batches with row numbers, cached on disk by content, tokenizer and `key`.

    By our own key: the tokenizer's pickle, which datasets would hash, changes with every use of it.
    """
    import datasets
    from datasets.fingerprint import Hasher
    from pyarrow import ArrowException

    vocabulary = (
        tokenizer.backend_tokenizer.to_str()
        if tokenizer.is_fast
        else sorted(tokenizer.get_vocab().items())
    )
    parts = (ENCODING, dataset._fingerprint, type(tokenizer).__name__, vocabulary, *key)
    fingerprint = Hasher.hash([str(part) for part in parts])
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "dynarank-features"
    folder.mkdir(parents=True, exist_ok=True)
    cached = folder / f"{fingerprint}.arrow"

    def mapped() -> Dataset:
        return dataset.map(
            function,
            batched=True,
            with_indices=True,
            remove_columns=dataset.column_names,
            new_fingerprint=fingerprint,
            cache_file_name=str(cached),
        )

    try:
        return mapped()
    except (ArrowException, OSError) as error:
        if not cached.is_file():
            raise
        log.warning("%s was damaged, and is made anew: %s", cached, str(error).splitlines()[0])
        cached.unlink()
        return mapped()
