"""Schemas of the tasks: types, ranges, and a line a field. This file imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from dynarank.errors import check_name
from dynarank.settings import Gt, Lt, UserPath, check_settings

TEXT_ARCHITECTURES = ("encoder", "decoder", "encoder-decoder")
ARCHITECTURES = (*TEXT_ARCHITECTURES, "image")
METRICS = {
    "class": ("accuracy", "f1", "matthews"),
    "number": ("pearson", "spearman", "rmse"),
    "answer": ("exact_match", "f1"),
    "tag": ("f1", "precision", "recall", "accuracy"),
    "text": ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf"),
}
"""The metrics by kind of target."""


def check_at_least(config: object, least: int, *names: str) -> None:
    """Raise `ValueError` where one of these settings is below `least`."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"task.{name} = {value}: at least {least}")


def check_class_names(labels: list[str] | None) -> None:
    """Raise `ValueError` where `task.labels` names fewer than two classes, or one twice."""
    if labels is None:
        return
    if len(labels) < 2:
        raise ValueError(
            f"task.labels = {labels}: at least 2 classes, or null for those in the data"
        )
    if len(set(labels)) < len(labels):
        raise ValueError(f"task.labels = {labels}: a class is named twice")


@dataclass
class TaskConfig:
    """What every task states: its source, its splits, its metrics, and the recipe that suits it."""

    scores_in_percent: ClassVar[bool] = False
    """Whether the family's scores run from 0 to 100, and not to 1."""

    name: str = "???"
    """A short name for folders."""
    title: str | None = None
    """The task's name in tables and plots; null: task.name."""
    shown: list[str] = field(default_factory=list)
    """Metrics that a table shows for the task; []: the one that selects."""
    place: int | None = None
    """The task's column in a table of several, from 0; null: after those that have one, by name."""
    family: str = "???"
    """The class that reads, encodes and scores it (dynarank.tasks.FAMILIES)."""
    path: Annotated[str | None, UserPath()] = None
    """A hub id, a local folder in the hub's layout, or package:NAME for data of a package."""
    subset: str | None = None
    """The data set's configuration; null: its only one, or the one that is called task.name."""
    revision: str | None = None
    """The hub's branch, tag or commit; null: its main branch."""
    train_file: Annotated[str | None, UserPath()] = None
    """Instead of task.path, a file of your own: .csv, .tsv, .jsonl or .parquet; for words and tags
    also CoNLL's columns, for images also a folder."""
    validation_file: Annotated[str | None, UserPath()] = None
    """null: a seeded share of train_file."""
    validation_share: Annotated[float, Gt(0), Lt(1)] = 0.1
    """The share of train_file that validates where there is no validation_file."""
    test_file: Annotated[str | None, UserPath()] = None
    """Labelled rows that are scored once, at the end, beside task.train_file; null: none."""
    train_split: str = "train"
    """The split that is trained on."""
    validation_splits: list[str] = field(default_factory=lambda: ["validation"])
    """Splits that are scored; metrics of several carry the split's name ('matched/accuracy')."""
    test_split: str | None = None
    """A labelled split of the data set that is scored once, at the end; null: none."""
    select: str = "???"
    """The metric that picks the best epoch at budget; higher is better."""
    architectures: list[str] = field(default_factory=lambda: list(TEXT_ARCHITECTURES))
    """Kinds of models that fit: encoder, decoder, encoder-decoder, image."""
    lr: Annotated[float, Gt(0)] = 1.48e-4  # the paper's, of CoLA
    """Learning rate on RoBERTa-base; scaled by model.lr_scale and method.lr_scale,
    overruled by optimizer.lr."""
    epochs: Annotated[int, Gt(0)] = 10
    """How often the training rows are passed; trainer.epochs overrules it."""
    batch_size: Annotated[int, Gt(0)] = 16  # the paper's
    """Rows of a batch; trainer.batch_size overrules it."""
    max_train_rows: Annotated[int | None, Gt(0)] = None
    """Train on a seeded sample of that many rows; null: all."""
    max_validation_rows: Annotated[int | None, Gt(0)] = None
    """Know only a seeded sample of that many rows a validation split; null: all."""
    validation_sample: Annotated[int | None, Gt(0)] = None
    """Rows scored while training, a seeded sample; the selected epoch is scored on all.
    null: all, always."""

    def __post_init__(self) -> None:
        check_name("task.name", self.name)
        check_settings("task", self)
        if not self.validation_splits:
            raise ValueError("task.validation_splits = []: name at least one split to score")
        if len(set(self.validation_splits)) < len(self.validation_splits):
            raise ValueError(
                f"task.validation_splits = {self.validation_splits}: a split is named twice. "
                "Name each once"
            )
        unknown = [kind for kind in self.architectures if kind not in ARCHITECTURES]
        if unknown or not self.architectures:
            raise ValueError(
                f"task.architectures = {self.architectures}: some of {', '.join(ARCHITECTURES)}"
            )
        if self.test_split is not None and self.test_split in self.splits:
            raise ValueError(
                f"task.test_split = {self.test_split!r}: validates already, so that the best epoch "
                "is chosen on it. Name a split of its own"
            )
        if self.train_file is None and self.test_split == self.train_split:
            raise ValueError(
                f"task.test_split = {self.test_split!r}: is trained on, so that its scores say "
                "nothing of other rows. Name a split of its own"
            )
        known = self.metric_names()
        if self.select not in known:
            metrics = getattr(self, "metrics", None)  # some families have no such setting
            where = "" if metrics is None else f", of those in task.metrics = {metrics}"
            raise ValueError(
                f"task.select = {self.select!r}: must be a metric that is scored, and of which "
                f"higher is better{where}: {', '.join(known) or 'there is none'}"
            )

    def metric_names(self) -> list[str]:
        """Return the names of what can pick an epoch in all splits, as `select` has them."""
        names = []
        for split in self.splits:
            names += [self.split_label(split) + metric for metric in self.selectable()]
        return names

    def selectable(self) -> list[str]:
        """Return the metrics that can pick an epoch. A family says which; the base has none."""
        return [self.select]

    @property
    def splits(self) -> list[str]:
        """The names of the splits that are scored."""
        return self.validation_splits if self.train_file is None else ["validation"]

    @property
    def tested(self) -> str | None:
        """The name of the split that is scored once, at the end; None for none."""
        if self.train_file is None:
            return self.test_split
        return None if self.test_file is None else "test"

    @property
    def one_file(self) -> bool:
        """Whether training and validation rows come from one file."""
        return self.train_file is not None and self.validation_file is None

    def split_label(self, split: str) -> str:
        """Return the prefix of a split's metrics.

        It is empty for a task's only split, else the split's name without 'validation_'.
        """
        return "" if len(self.splits) == 1 else split.removeprefix("validation_") + "/"

    def check_metrics(self, metrics: list[str], kind: str) -> None:
        """Raise `ValueError` for a metric that the kind of target does not have."""
        known = METRICS[kind]
        for metric in metrics:
            if metric not in known:
                raise ValueError(
                    f"task.metrics = {metrics}: {metric!r} is none of those for a {kind}: "
                    f"{', '.join(known)}"
                )


@dataclass
class TextColumns:
    """The data's names for a text task's columns."""

    text: str = "text"
    """The column of the text, or of the first of a pair."""
    text_pair: str | None = None
    """The second text, for a task on pairs."""
    label: str = "label"
    """The column of the class or number."""
    id: str | None = None
    """Must be unique; kept by predict."""


@dataclass
class TextClassificationConfig(TaskConfig):
    """One text or a pair of texts to a class, or to a number."""

    columns: TextColumns = field(default_factory=TextColumns)
    target: str = "class"
    """class or number."""
    labels: list[str] | None = None
    """The classes' names, in the order of their numbers; null: those found in the data."""
    metrics: list[str] = field(default_factory=lambda: ["accuracy"])
    """accuracy, f1 (of class 1 of two; macro over more), matthews; of numbers pearson, spearman,
    rmse (the root of the mean squared error, which selects no epoch)."""
    max_length: int = 128  # the paper's, of GLUE
    """Tokens, special ones included; longer inputs are cut."""
    test_splits: list[str] = field(default_factory=lambda: ["test"])
    """Splits without labels, which a submission to the GLUE site predicts."""
    submission: list[str] = field(default_factory=list)
    """The site's name for the file of each of these; []: the task is none of the site's."""
    submission_by_name: bool = False
    """Whether the site wants the classes' names, and not their numbers."""

    def __post_init__(self) -> None:
        if self.target not in ("class", "number"):
            raise ValueError(f"task.target = {self.target!r}: must be class or number")
        check_class_names(self.labels)
        check_at_least(self, 3, "max_length")
        self.check_metrics(self.metrics, self.target)
        # Last, for it looks at task.select, which depends on these.
        super().__post_init__()

    def selectable(self) -> list[str]:
        return [metric for metric in self.metrics if metric != "rmse"]  # lower is better


@dataclass
class QuestionColumns:
    """The data's names for a question answering task's columns."""

    id: str | None = "id"
    """The column that names a row, which must be unique; predict keeps it."""
    question: str = "question"
    """The column of the question."""
    context: str = "context"
    """The column of the text that holds the answer."""
    answers: str = "answers"
    """{text: [...], answer_start: [...]} as SQuAD has it, a list of texts, or one text."""
    answer_start: str | None = None
    """Characters before the (first) answer, where answers are mere texts; null: it is taken where
    it first occurs."""


@dataclass
class QuestionAnsweringConfig(TaskConfig):
    """A question to a span of a context, over several windows where the context is long."""

    scores_in_percent: ClassVar[bool] = True

    columns: QuestionColumns = field(default_factory=QuestionColumns)
    no_answer: bool = False
    """Whether questions without an answer exist and count (SQuAD v2.0)."""
    null_threshold: float = 0.0
    """No answer is given where its score exceeds the best span's by more than this. The best
    threshold is reported beside."""
    # max_length, stride, best and max_answer are those of the paper's runs on SQuAD.
    max_length: int = 384
    """Tokens of a window, question and special ones included."""
    stride: int = 128
    """Tokens of context that a window shares with the one before."""
    max_question: int = 64
    """Tokens of a question; longer ones are cut."""
    best: int = 20
    """Starts, and ends, that are considered in a window; also the length of the n-best list."""
    max_answer: int = 30
    """Tokens of an answer."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "max_question", "best", "max_answer")
        check_at_least(self, 0, "stride")
        room = self.max_length - self.max_question - 4  # special tokens of a pair, as RoBERTa has
        if self.stride >= room:
            raise ValueError(
                f"task.stride = {self.stride}: must be below task.max_length - task.max_question "
                f"- 4 = {room}, the context in a window, for windows to move on"
            )
        super().__post_init__()

    def selectable(self) -> list[str]:
        return list(METRICS["answer"])
