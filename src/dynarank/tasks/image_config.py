"""Schema of the image classification tasks. This file imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from dynarank.tasks.config import TaskConfig, check_class_names


@dataclass
class ImageColumns:
    """The data's names for an image task's columns."""

    image: str = "image"
    """The column of the image: an image of datasets, its bytes, or the path of its file."""
    label: str = "label"
    """The column of the class."""
    id: str | None = None
    """Must be unique; kept by predict. null: the file's name, where images come from a folder."""


@dataclass
class ImageClassificationConfig(TaskConfig):
    """An image to a class. task.train_file may also name a folder, with a subfolder a class."""

    columns: ImageColumns = field(default_factory=ImageColumns)
    labels: list[str] | None = None
    """The classes' names, in the order of their numbers; null: those found in the data."""
    metrics: list[str] = field(default_factory=lambda: ["accuracy", "f1"])
    """accuracy, f1 (of class 1 of two; macro over more), matthews."""
    architectures: list[str] = field(default_factory=lambda: ["image"])
    """Kinds of models that fit."""

    def __post_init__(self) -> None:
        check_class_names(self.labels)
        self.check_metrics(self.metrics, "class")
        super().__post_init__()

    def selectable(self) -> list[str]:
        return self.metrics
