"""Tasks: one file a family, one YAML a task. To add a family, write its class and name it here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynarank.registry import lookup

if TYPE_CHECKING:
    from dynarank.tasks.base import Task
    from dynarank.tasks.config import TaskConfig

FAMILIES = {
    "text_classification": "dynarank.tasks.text_classification:TextClassification",
    "question_answering": "dynarank.tasks.question_answering:QuestionAnswering",
    "seq2seq": "dynarank.tasks.seq2seq:Seq2Seq",
    "causal_lm": "dynarank.tasks.causal_lm:CausalLM",
    "instruct": "dynarank.tasks.instruct:Instruct",
    "token_classification": "dynarank.tasks.token_classification:TokenClassification",
    "image_classification": "dynarank.tasks.image_classification:ImageClassification",
}
"""Where the class of each family lives."""


def build_task(config: TaskConfig) -> Task[Any]:
    """Return the task that a configuration describes.

    Raises:
        UserError: The family is not known.
    """
    task_class = lookup("task.family", config.family, FAMILIES)
    task: Task[Any] = task_class(config)
    return task
