"""Schemas of the tasks: types, ranges, and a line a field. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

METRICS = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("pearson", "spearman"),
}


@dataclass
class TaskConfig:
    """What every task states: its source, its splits, the metric that selects, and the recipe that suits it."""

    name: str = "???"
    """A short name for folders and tables."""
    family: str = "???"
    """The class that reads, encodes and scores it (dynarank.tasks.FAMILIES)."""
    path: str = "???"
    """A hub id, a local folder in the hub's layout, or package:NAME for data that a package carries."""
    subset: str | None = None
    """The data set's configuration, where it has several."""
    revision: str | None = None
    """The hub's branch, tag or commit; null: its main branch."""
    train_split: str = "train"
    validation_splits: list[str] = field(default_factory=lambda: ["validation"])
    """Splits that are scored; metrics of several carry the split's name ('matched/accuracy')."""
    select: str = "???"
    """The metric that picks the best epoch at budget; higher is better."""
    lr: float = 1.48e-4
    """Learning rate on RoBERTa-base; scaled by model.lr_scale, overruled by optimizer.lr."""
    epochs: int = 10
    batch_size: int = 16
    max_train_rows: int | None = None
    """Train on a seeded sample of that many rows; null: all."""
    max_validation_rows: int | None = None
    """Score a seeded sample of that many rows a split; null: all."""

    def __post_init__(self) -> None:
        for name in ("lr", "epochs", "batch_size", "max_train_rows", "max_validation_rows"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"task.{name} = {value}: must be above 0")
        if not self.validation_splits:
            raise ValueError("task.validation_splits = []: name at least one split to score")

    def split_label(self, split: str) -> str:
        """The prefix of a split's metrics: none for a task's only split, else its name less 'validation_'."""
        return "" if len(self.validation_splits) == 1 else split.removeprefix("validation_") + "/"


@dataclass
class TextClassificationConfig(TaskConfig):
    """One text or a pair of texts to a class, or to a number."""

    text_columns: list[str] = field(default_factory=lambda: ["sentence"])
    """One column, or two for a pair."""
    label_column: str = "label"
    labels: list[str] | None = None
    """The classes' names, in the order of their numbers; null: the label is a number (regression)."""
    metrics: list[str] = field(default_factory=lambda: ["accuracy"])
    """accuracy, f1 (of class 1 of two; macro over more), matthews; or pearson, spearman for a number."""
    max_length: int = 128
    """Tokens, special ones included; longer inputs are cut."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.text_columns) not in (1, 2):
            raise ValueError(f"task.text_columns = {self.text_columns}: one column, or two for a pair")
        if self.labels is not None and len(self.labels) < 2:
            raise ValueError(f"task.labels = {self.labels}: at least 2 classes, or null for a number")
        if self.max_length < 3:
            raise ValueError(f"task.max_length = {self.max_length}: at least 3 tokens")
        kind = "regression" if self.labels is None else "classification"
        for metric in self.metrics:
            if metric not in METRICS[kind]:
                raise ValueError(f"task.metrics = {self.metrics}: {metric!r} is none of {kind}'s: {METRICS[kind]}")
        known = [self.split_label(split) + metric for split in self.validation_splits for metric in self.metrics]
        if self.select not in known:
            raise ValueError(f"task.select = {self.select!r}: must be one of {known}")
