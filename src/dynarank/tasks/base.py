"""What a task is to the rest: data that is read and checked, then encoded; a model class; a score."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torchmetrics import MetricCollection

from dynarank.errors import UserError
from dynarank.hub import PACKAGE, HubConfig, locate
from dynarank.tasks.config import TaskConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Batch = dict[str, Tensor]


class Task(ABC):
    """A task family. Life: `read` (before any model is loaded), `encode`, then batches through `score`."""

    auto_class: ClassVar[str]
    """transformers' auto class of the models that fit."""
    peft_task_type: ClassVar[str]

    def __init__(self, config: TaskConfig) -> None:
        self.config = config
        self.train: Dataset
        self.validation: dict[str, Dataset] = {}

    def read(self, hub: HubConfig, seed: int = 0) -> None:
        """Load the splits and check their rows. `seed` picks the sample where rows are limited.

        Raises:
            UserError: the source, a split or a column is missing, a split is empty, or a row is unusable (its number
                is named).
        """
        import datasets

        datasets.disable_progress_bars()
        splits = open_splits(self.config, hub)
        self.train = self._take(splits, self.config.train_split, self.config.max_train_rows, seed)
        for split in self.config.validation_splits:
            self.validation[split] = self._take(splits, split, self.config.max_validation_rows, seed)

    def _take(self, splits: Mapping[str, Dataset], split: str, rows: int | None, seed: int) -> Dataset:
        if split not in splits:
            raise UserError(f"{self._source()} has no split {split!r}: it has {', '.join(splits)}")
        dataset = splits[split]
        if len(dataset) == 0:
            raise UserError(f"{self._source()}: the split {split!r} is empty")
        missing = [column for column in self.columns() if column not in dataset.column_names]
        if missing:
            raise UserError(
                f"{self._source()}: the split {split!r} has no column {missing[0]!r}; it has "
                f"{', '.join(dataset.column_names)}. Name yours in {self.column_field(missing[0])}"
            )
        self.check_rows(dataset, split)
        if rows is not None and rows < len(dataset):
            dataset = dataset.shuffle(seed=seed).select(range(rows))
        return dataset

    def _source(self) -> str:
        return f"task.path = {self.config.path}" + (f" ({self.config.subset})" if self.config.subset else "")

    @abstractmethod
    def columns(self) -> list[str]:
        """The columns that the task needs."""

    @abstractmethod
    def column_field(self, column: str) -> str:
        """The setting that names a column, for an error."""

    @abstractmethod
    def check_rows(self, dataset: Dataset, split: str) -> None:
        """Raise `UserError` for rows that cannot be used, naming the first."""

    @abstractmethod
    def model_options(self) -> dict[str, Any]:
        """What `from_pretrained` is told about the task (number of labels, ...)."""

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Turn every split into token ids, once: cached on disk by content, tokenizer and settings."""

    @abstractmethod
    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], Batch]:
        """What makes a batch of encoded rows, padded to the longest among them."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Fresh metrics for one split."""

    @abstractmethod
    def score(self, model: nn.Module, batch: Batch, metrics: MetricCollection) -> Tensor:
        """Run the model on a batch, update the metrics, return the loss (a scalar)."""


def _cache_dir(folder: Path) -> str | None:
    """Where a local folder's data is cached: by its files, since datasets goes by the folder's last name alone.

    Without this, a file that was changed, or another folder of that name, silently gives the rows cached before.
    """
    if not folder.is_dir():
        return None
    import datasets

    files = [
        (str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()
    ]
    digest = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"dynarank-{digest}")


def open_splits(config: TaskConfig, hub: HubConfig) -> Mapping[str, Dataset]:
    """The data set's splits by name, from wherever `locate` finds it. Raises `UserError`."""
    if config.path.startswith(PACKAGE):
        from dynarank.tasks.packaged import load_packaged

        return load_packaged(config.path.removeprefix(PACKAGE))
    source = locate("datasets", "task.path", config.path, hub.root, config.revision)
    import datasets

    try:
        return datasets.load_dataset(
            source.path, config.subset, revision=config.revision, cache_dir=_cache_dir(Path(source.path))
        )
    except Exception as error:  # datasets raises a dozen kinds for data that it cannot read
        raise UserError(
            f"task.path = {config.path}, task.subset = {config.subset}: cannot be read from {source.path}: "
            f"{_reason(error, Path(source.path))}"
        ) from error


def _reason(error: Exception, folder: Path) -> str:
    """The first line of what went wrong underneath; an empty parquet file, which datasets chokes on, by its name."""
    from pyarrow import parquet

    empty = [str(file) for file in sorted(folder.rglob("*.parquet")) if parquet.read_metadata(file).num_rows == 0]
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return f"{empty[0]} is empty" if empty else f"{type(cause).__name__}: {cause}".splitlines()[0]
