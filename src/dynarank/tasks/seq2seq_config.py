"""Schema of the text-to-text tasks. This file imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dynarank.settings import check_settings
from dynarank.tasks.config import TaskConfig, check_at_least


@dataclass
class Seq2SeqColumns:
    """The data's names for a text-to-text task's columns; a dot reaches into a nested one."""

    source: str = "source"
    """The column of the text to start from."""
    target: str = "target"
    """The column of the text to be written."""
    id: str | None = None
    """Must be unique; kept by predict."""


@dataclass
class GenerateConfig:
    """How texts are generated, in validation and in predict."""

    num_beams: int = 3  # the paper's
    """Texts that the search keeps at each token; 1: greedy."""
    max_length: int | None = None
    """Tokens generated at most; null: task.max_target."""
    min_length: int = 0
    """Tokens generated at least."""
    length_penalty: float = 1.0
    """Above 0 favours longer texts, below 0 shorter ones."""
    no_repeat_ngram_size: int = 0
    """No sequence of that many tokens occurs twice; 0: no limit."""
    early_stopping: bool = True
    """Stop once num_beams texts are complete."""

    def __post_init__(self) -> None:
        check_settings("task.generate", self)
        if self.num_beams < 1:
            raise ValueError(f"task.generate.num_beams = {self.num_beams}: at least 1")
        if self.max_length is not None and self.max_length <= max(1, self.min_length):
            raise ValueError(
                f"task.generate.max_length = {self.max_length}: at least 2, and above "
                f"min_length = {self.min_length}"
            )
        if self.min_length < 0 or self.no_repeat_ngram_size < 0:
            raise ValueError(
                f"task.generate.min_length = {self.min_length}, no_repeat_ngram_size = "
                f"{self.no_repeat_ngram_size}: must be 0 or more"
            )


@dataclass
class Seq2SeqConfig(TaskConfig):
    """A text to a text: summarization, translation, and any other."""

    scores_in_percent: ClassVar[bool] = True

    columns: Seq2SeqColumns = field(default_factory=Seq2SeqColumns)
    metrics: list[str] = field(default_factory=lambda: ["rouge1", "rouge2", "rougeL", "rougeLsum"])
    """rouge1, rouge2, rougeL, rougeLsum (F-measures, stemmed), bleu, chrf; all from 0 to 100."""
    max_source: int = 768  # this and max_target: the paper's, of XSum
    """Tokens of a source; longer ones are cut."""
    max_target: int = 64
    """Tokens of a target in training; longer ones are cut."""
    prefix: str | None = None
    """Put before each source; null: t5_prefix for T5, nothing for others."""
    t5_prefix: str = ""
    """What T5 was pretrained to see before such a source."""
    source_lang: str | None = None
    """The sources' language, for tokenizers that mark languages (mBART, NLLB, M2M100): two letters,
    or the tokenizer's own code."""
    target_lang: str | None = None
    """The targets' language."""
    generate: GenerateConfig = field(default_factory=GenerateConfig)

    def __post_init__(self) -> None:
        check_at_least(self, 2, "max_source", "max_target")
        self.check_metrics(self.metrics, "text")
        if self.generate.max_length is None and self.max_target <= self.generate.min_length:
            raise ValueError(
                f"task.generate.min_length = {self.generate.min_length}: must be below "
                f"task.max_target = {self.max_target}, which bounds a text where "
                "task.generate.max_length is null"
            )
        super().__post_init__()

    def selectable(self) -> list[str]:
        return self.metrics
