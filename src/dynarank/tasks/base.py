"""What a task is to the rest of the project: data, features, a model class, scores, predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.tasks.baselines import Baseline
from dynarank.tasks.config import TaskConfig
from dynarank.tasks.features import token_counts
from dynarank.tasks.files import read_file
from dynarank.tasks.rows import check_ids, check_texts, reach_nested, sample_rows
from dynarank.tasks.sources import cut_validation, describe, open_splits

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Batch = dict[str, Tensor]
Collator = Callable[[list[dict[str, Any]]], Batch]
ConfigT = TypeVar("ConfigT", bound=TaskConfig)


class Task(ABC, Generic[ConfigT]):
    """A task family.

    A task lives in three steps: `read` loads and checks its rows, before any model is loaded;
    `encode` makes features of them; then batches of features pass through `score` or `predict`.

    `train`, `validation` and `test` (by split) hold the rows. `train_features` and its like hold
    what a model takes of them: a row gives one feature, or several (windows of a long text).
    Features stand in the order of their rows. There are test rows where they are asked for.
    """

    auto_class: ClassVar[str]
    """The name of transformers' auto class of the models that fit."""
    peft_task_type: ClassVar[str | None] = None
    """PEFT's name of such tasks; None where it has none."""
    processor: ClassVar[str] = "tokenizer"
    """What turns inputs into numbers: a key of `dynarank.pretrained.processors.PROCESSORS`. The
    arguments called `tokenizer` here are that object."""
    has_head: ClassVar[bool] = True
    """Whether the auto class adds a task head of its own, which is trained in full."""
    labels_in: ClassVar[Sequence[str]]
    """The roles of the columns that are to be predicted."""
    scored_by_features: ClassVar[bool] = False
    """Whether what rows are scored by stands in their features, beside the rows themselves."""
    length_setting: ClassVar[str | None] = "task.max_length"
    """The setting that bounds the tokens of a feature. Errors name it. None: none has tokens."""
    host_columns: ClassVar[Sequence[str]] = ()
    """Columns of the features that no batch holds."""

    def __init__(self, config: ConfigT) -> None:
        self.config = config
        self.train: Dataset
        self.validation: dict[str, Dataset] = {}
        self.train_features: Dataset
        self.validation_features: dict[str, Dataset] = {}
        self.test: dict[str, Dataset] = {}
        self.test_features: dict[str, Dataset] = {}

    def recorded_config(self) -> ConfigT:
        """Return the configuration with what was learned from the rows filled in.

        A task that is built from it predicts as this one does, without any training rows.
        """
        return self.config

    def read(self, hub: HubConfig, seed: int = 0) -> None:
        """Load the splits and check their rows.

        Args:
            hub: where data sets are looked for.
            seed: picks the validation rows of a single file, and the sample of limited rows.

        Raises:
            UserError: The source, a split or a column is missing, a split is empty, or a row
                cannot be used (the message has its number).
        """
        config = self.config
        splits = open_splits(config, hub, self.read_file)
        needed = [config.train_split]  # first, for it settles the classes
        if not config.one_file:
            needed += config.splits
        checked = {split: self._checked_split(splits, split) for split in needed}
        # Checked before it is cut, so that an error's row is counted as in the file.
        checked = dict(cut_validation(config, checked, seed))
        self.train = sample_rows(checked[config.train_split], config.max_train_rows, seed)
        for split in config.splits:
            self.validation[split] = sample_rows(checked[split], config.max_validation_rows, seed)
        if config.tested is not None:
            self.test[config.tested] = self._checked_split(splits, config.tested)

    def scored_rows(self, split: str) -> Dataset:
        """Return the rows of a split that is validated, or tested."""
        return {**self.validation, **self.test}[split]

    def scored_features(self, split: str) -> Dataset:
        """Return the features of a split that is validated, or tested."""
        return {**self.validation_features, **self.test_features}[split]

    def baseline(self, rows: Dataset) -> Baseline | None:
        """Return what the best answer that does not look at the input scores on labelled rows.

        None where a family knows no such answer.
        """
        return None

    def read_file(self, field: str, name: str, used: Collection[str] | None = None) -> Dataset:
        """Return the rows of a file or folder of the user's own, for training and for prediction.

        A family whose rows come in files of another kind reads them here.

        Args:
            field: the setting or option that named the file, for errors.
            name: its path; `~` means the home folder.
            used: the columns that are needed; None: all are.

        Raises:
            UserError: It is not there, of no known kind, or broken.
        """
        return read_file(field, name, used)

    def _checked_split(self, splits: Mapping[str, Dataset], split: str) -> Dataset:
        if split not in splits:
            raise UserError(
                f"task.path = {self.config.path} has no split {split!r}: it has {', '.join(splits)}"
            )
        return self.check(splits[split], describe(self.config, split), labelled=True)

    def check(self, dataset: Dataset, where: str, labelled: bool) -> Dataset:
        """Return the rows in the form that `features` takes.

        Args:
            dataset: the rows as they were read.
            where: the rows' source, for errors.
            labelled: whether the columns to be predicted must be there.

        Raises:
            UserError: There are no rows, a column is missing, or a row cannot be used.
        """
        if len(dataset) == 0:
            raise UserError(f"{where} is empty")
        columns = self.columns(labelled)
        dataset = reach_nested(dataset, list(columns.values()))
        for role, column in columns.items():
            if column not in dataset.column_names:
                raise UserError(
                    f"{where} has no column {column!r}; it has {', '.join(dataset.column_names)}. "
                    f"Name yours in task.columns.{role}"
                )
        id_column = self.id_column(dataset)
        if id_column is not None:
            check_ids(dataset, where, id_column)
        return self.check_rows(dataset, where, labelled)

    def check_texts(self, dataset: Dataset, where: str, columns: Sequence[str]) -> None:
        """Raise `UserError` unless every row has a text in each of these columns.

        Blank texts are refused in the user's own files only: published data sets hold some.
        """
        check_texts(dataset, where, columns, allow_blank=self.config.train_file is None)

    def columns(self, labelled: bool) -> dict[str, str]:
        """Return the names of the needed columns by role (a field of `task.columns`).

        The id column is needed only in files to train on: the hub's copies may lack it.
        """
        unneeded = set() if labelled else set(self.labels_in)
        if not labelled or self.config.train_file is None:
            unneeded.add("id")
        roles: dict[str, str | None] = asdict(self.config)["columns"]  # TaskConfig itself has none
        return {
            role: column
            for role, column in roles.items()
            if column is not None and role not in unneeded
        }

    def can_be_scored(self, rows: Dataset) -> bool:
        """Return whether rows to predict bring what predictions are scored by."""
        columns = self.columns(labelled=True)
        needed = {columns[role].partition(".")[0] for role in self.labels_in if role in columns}
        return needed <= set(rows.column_names)

    def id_column(self, dataset: Dataset) -> str | None:
        """Return the name of the rows' id column, or None where the rows have none."""
        column: str | None = asdict(self.config)["columns"]["id"]
        return column if column in dataset.column_names else None

    def row_ids(self, dataset: Dataset) -> list[Any]:
        """Return the id of each row: its value in the id column, else its number."""
        column = self.id_column(dataset)
        return list(range(len(dataset))) if column is None else list(dataset[column][:])

    def check_sample(self, split: str, rows: np.ndarray) -> None:
        """Raise `UserError` where a sample of a validation split has no value of a metric.

        Args:
            split: its name.
            rows: the numbers of the sample's rows, (rows) int.
        """

    def generated_lengths(self) -> dict[str, int]:
        """Return the largest number of generated tokens, by the setting that bounds it.

        The dictionary is empty for a task that generates nothing.
        """
        return {}

    @abstractmethod
    def check_rows(self, dataset: Dataset, where: str, labelled: bool) -> Dataset:
        """Return the rows in the form that `features` takes.

        Raises:
            UserError: Some rows cannot be used. The message names the first one.
        """

    @abstractmethod
    def model_options(self) -> dict[str, Any]:
        """Return what `from_pretrained` must know about the task (number of labels, ...)."""

    def encode(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        """Make features of every split, once: they are cached on disk."""
        self.train_features = self.features(self.train, tokenizer, model)
        for split, rows in self.validation.items():
            self.validation_features[split] = self.features(rows, tokenizer, model)
        for split, rows in self.test.items():
            self.test_features[split] = self.features(rows, tokenizer, model)

    @abstractmethod
    def features(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        labelled: bool = True,
    ) -> Dataset:
        """Return the features of a data set, with `input_ids` among their columns."""

    def rows_of(self, features: Dataset) -> np.ndarray:
        """Return the number of the row that each feature comes from, (features)."""
        return np.arange(len(features))

    def feature_lengths(self, features: Dataset) -> np.ndarray:
        """Return the length of each feature, (features): the number of its tokens."""
        return token_counts(features)

    def batch_size(self, batch: Batch) -> int:
        """Return the number of features in a batch."""
        return len(next(iter(batch.values())))

    @abstractmethod
    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Return the function that makes a batch of features, padded to the longest of them."""

    def inputs(self, batch: Batch) -> Batch:
        """Return the part of a batch that the model takes."""
        return batch

    def loss_terms(self, batch: Batch) -> Tensor:
        """Return the number of terms that the batch's loss is the mean of, a scalar.

        With it, the losses of the shares of a batch add up to the loss of the batch.
        """
        inputs = next(iter(batch.values()))
        return torch.tensor(self.batch_size(batch), device=inputs.device)

    @abstractmethod
    def scores(self, split: str) -> nn.Module:
        """Return fresh `Scores` of a split that is validated, or tested."""

    @abstractmethod
    def score(self, model: nn.Module, batch: Batch, scores: Any) -> Tensor:
        """Run the model, add its predictions to the scores, and return the loss (a scalar)."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return the model's prediction for each feature of a batch, on the CPU."""

    @abstractmethod
    def answers(
        self, dataset: Dataset, features: Dataset, predicted: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Turn the predictions of all features into one record of plain values for each row."""

    def artifacts(self, split: str, scores: Any) -> dict[str, Any]:
        """Return the files that a run leaves beside its scores: their content by name.

        The content is JSON; for a name that ends with .jsonl it is a list, with an item a line.
        """
        return {}
