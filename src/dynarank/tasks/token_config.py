"""Schema of the token classification tasks. This file imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from dynarank.errors import nearest
from dynarank.tasks.config import TaskConfig, check_at_least

SCHEMES = ("auto", "iob1", "iob2", "iobes", "bilou", "plain")
SPAN_METRICS = ("f1", "precision", "recall")


@dataclass
class TokenColumns:
    """The data's names for a token classification task's columns."""

    tokens: str = "tokens"
    """The column of the words: a list of texts a row."""
    tags: str = "tags"
    """The column of the words' tags: a list as long."""
    id: str | None = None
    """Must be unique; kept by predict."""


@dataclass
class TokenClassificationConfig(TaskConfig):
    """Each word of a text to a tag; tags of B-, I- and O mark entities of several words."""

    columns: TokenColumns = field(default_factory=TokenColumns)
    scheme: str = "auto"
    """How tags mark entities: iob1, iob2 (also called BIO), iobes or bilou; auto: as the tags
    show. plain: a tag is a class of its own, as a part of speech is."""
    labels: list[str] | None = None
    """The kinds of entities (the tags, where they are plain), in the order of their numbers; null:
    those found in the data."""
    tag_names: list[str] | None = None
    """The tags' names by number, for data that holds bare numbers; null: the data's own names."""
    metrics: list[str] = field(default_factory=lambda: ["f1", "precision", "recall", "accuracy"])
    """f1, precision, recall (of whole entities, all kinds together), accuracy (of words)."""
    max_length: int = 128
    """Tokens of a window, special ones included; a longer row is read in several windows."""
    stride: int = 32
    """Tokens that a window shares with the one before."""

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"task.scheme = {self.scheme!r}. {nearest(self.scheme, SCHEMES)}")
        check_at_least(self, 8, "max_length")
        check_at_least(self, 0, "stride")
        room = self.max_length - 4  # special tokens
        if self.stride >= room:
            raise ValueError(
                f"task.stride = {self.stride}: must be below task.max_length - 4 = {room}, for "
                "windows to move on"
            )
        self._check_labels()
        self.check_metrics(self.metrics, "tag")
        spans = [metric for metric in self.metrics if metric in SPAN_METRICS]
        if self.scheme == "plain" and spans:
            raise ValueError(
                f"task.metrics = {self.metrics}: {spans[0]} is of entities, and task.scheme = "
                "plain has none. Use task.metrics=[accuracy] task.select=accuracy"
            )
        super().__post_init__()

    def _check_labels(self) -> None:
        if self.labels is None:
            return
        least = 2 if self.scheme == "plain" else 1
        if len(self.labels) < least:
            raise ValueError(
                f"task.labels = {self.labels}: at least {least}, or null for those in the data"
            )
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"task.labels = {self.labels}: one is named twice")

    def selectable(self) -> list[str]:
        return self.metrics
