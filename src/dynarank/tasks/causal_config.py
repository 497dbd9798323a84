"""Schemas of the language-model tasks. This file imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from dynarank.settings import Gt
from dynarank.tasks.config import TaskConfig, check_at_least

LIKELIHOODS = ("log_likelihood", "perplexity", "token_accuracy")
"""Scores of the given texts."""
GENERATED = ("exact_match", "rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf")
"""Scores of the texts that the model writes."""
CHOSEN = ("choice_accuracy", "choice_accuracy_norm")
"""Scores of the likeliest of given answers; `_norm` divides by an answer's characters."""
LOWER_IS_BETTER = ("perplexity",)


@dataclass
class CausalColumns:
    """The data's names for the columns of plain texts."""

    text: str = "text"
    """The column of the text."""
    id: str | None = None
    """Must be unique; kept by predict."""


@dataclass
class InstructColumns:
    """The data's names for the columns of questions and answers, or of whole conversations.

    With nothing given they are found: messages, conversations, prompt and completion, or
    instruction, input and output.
    """

    messages: str | None = None
    """A list of {role, content}, or of {from, value}."""
    prompt: str | None = None
    """The question, where there are no messages."""
    input: str | None = None
    """What follows the question, after an empty line; it may be empty."""
    completion: str | None = None
    """The answer, where there are no messages."""
    choices: str | None = None
    """A list of answers of which one is right, for choice_accuracy; null: task.choices."""
    id: str | None = None
    """Must be unique; kept by predict."""


@dataclass
class LanguageModelConfig(TaskConfig):
    """What both language-model tasks state."""

    max_length: int = 512
    """Tokens of a row; longer ones are cut at the end. Questions to be answered are not."""
    packing: bool = False
    """Fill a training feature of max_length tokens with several rows, whose attention is kept
    apart. Needs the extra llm (trl)."""
    chunked_loss: bool = True
    """Compute the loss a part of the tokens at a time, so that the scores of a whole vocabulary are
    never kept for all of them; false: as transformers does."""

    def check_language_metrics(self, metrics: list[str], known: tuple[str, ...]) -> None:
        """Raise `ValueError` for a metric that the family does not have."""
        for metric in metrics:
            if metric not in known:
                raise ValueError(
                    f"task.metrics = {metrics}: {metric!r} is none of {', '.join(known)}"
                )


@dataclass
class CausalLMConfig(LanguageModelConfig):
    """Plain texts, each token from those before it."""

    columns: CausalColumns = field(default_factory=CausalColumns)
    metrics: list[str] = field(default_factory=lambda: list(LIKELIHOODS))
    """log_likelihood (mean of a token, in nats), perplexity, token_accuracy."""

    def __post_init__(self) -> None:
        check_at_least(self, 2, "max_length")
        self.check_language_metrics(self.metrics, LIKELIHOODS)
        super().__post_init__()

    def selectable(self) -> list[str]:
        return [metric for metric in self.metrics if metric not in LOWER_IS_BETTER]


@dataclass
class InstructConfig(LanguageModelConfig):
    """Answers to questions, or in conversations; only the answers count in the loss."""

    columns: InstructColumns = field(default_factory=InstructColumns)
    system: str | None = None
    """A system message that is put before every conversation without one; null: none."""
    metrics: list[str] = field(default_factory=lambda: list(LIKELIHOODS))
    """Of the given answers log_likelihood, perplexity, token_accuracy; of those that the model
    writes exact_match, rouge1, rouge2, rougeL, rougeLsum, bleu, chrf (from 0 to 1); of choices
    choice_accuracy, choice_accuracy_norm."""
    choices: list[str] | None = None
    """Answers of which the likeliest is chosen, the same for every row; null: columns.choices."""
    max_answer: Annotated[int, Gt(0)] = 64
    """Tokens that are written at most, in validation and in predict."""

    def __post_init__(self) -> None:
        check_at_least(self, 2, "max_length")
        self.check_language_metrics(self.metrics, LIKELIHOODS + GENERATED + CHOSEN)
        if self.choices is not None and len(set(self.choices)) < max(2, len(self.choices)):
            raise ValueError(f"task.choices = {self.choices}: at least 2, all different")
        if self.choices is not None and "" in self.choices:
            raise ValueError(f"task.choices = {self.choices}: an empty one has no tokens to score")
        has_choices = self.choices is not None or self.columns.choices is not None
        if set(self.metrics) & set(CHOSEN) and not has_choices:
            raise ValueError(
                f"task.metrics = {self.metrics}: choices are scored, and there are none. Give "
                "task.choices=[...] or task.columns.choices=COLUMN"
            )
        super().__post_init__()

    def selectable(self) -> list[str]:
        return [metric for metric in self.metrics if metric not in LOWER_IS_BETTER]
