"""What loading a model asks of a task: this room stands before tasks, and imports none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class TaskNames(Protocol):
    """What a task's configuration says of itself, for error messages."""

    @property
    def name(self) -> str:
        """The task's own name."""

    @property
    def family(self) -> str:
        """The name of the task's family."""

    @property
    def architectures(self) -> Sequence[str]:
        """The kinds of models that fit."""


class TaskModel(Protocol):
    """What a task says of the model that it needs."""

    @property
    def config(self) -> TaskNames:
        """The task's configuration."""

    @property
    def auto_class(self) -> str:
        """Transformers' auto class of the models that fit."""

    @property
    def processor(self) -> str:
        """What reads the inputs: a key of `processors.PROCESSORS`."""

    @property
    def has_head(self) -> bool:
        """Whether the auto class brings a task head of its own, to be trained in full."""

    def model_options(self) -> dict[str, Any]:
        """Return what `from_pretrained` is told about the task (number of labels, ...)."""
