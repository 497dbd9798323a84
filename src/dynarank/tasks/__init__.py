"""Tasks: one file a family, one YAML a task. To add a family, write its class and name it here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynarank.registry import lookup

if TYPE_CHECKING:
    from dynarank.tasks.base import Task
    from dynarank.tasks.config import TaskConfig

FAMILIES = {"text_classification": "dynarank.tasks.text_classification:TextClassification"}


def build_task(config: TaskConfig) -> Task:
    """The task that a configuration describes. Raises `UserError` for an unknown family."""
    task: Task = lookup("task.family", config.family, FAMILIES)(config)
    return task
