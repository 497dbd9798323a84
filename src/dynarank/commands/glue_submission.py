"""The test set of a GLUE task in the form that the GLUE site takes.

A file for each test split, with the columns `index` and `prediction`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.commands.command_line import make_folder, refuse_existing, replaced_file
from dynarank.errors import UserError
from dynarank.tasks.sources import describe, open_splits

if TYPE_CHECKING:
    from datasets import Dataset

    from dynarank.pretrained.hub import HubConfig
    from dynarank.runs.predictor import Predictor, Record
    from dynarank.tasks.base import Task
    from dynarank.tasks.config import TextClassificationConfig

LARGEST_SCORE = 5.0
"""STS-B's scores lie between 0 and this."""


@dataclass(frozen=True)
class Submission:
    """The rows that are predicted, and the files that the predictions are written into."""

    rows: Mapping[str, Dataset]
    """The rows of each test split, checked."""
    paths: Mapping[str, Path]
    """The file of each test split."""

    def write(self, predictor: Predictor, batch_size: int = 32) -> list[Path]:
        """Predict the splits into their files, and return these."""
        task: Any = predictor.task
        for split, path in self.paths.items():
            rows = self.rows[split]
            records = predictor(rows, batch_size)
            numbers = rows["idx"][:] if "idx" in rows.column_names else range(len(rows))
            lines = ["index\tprediction"]
            for number, record in zip(numbers, records, strict=True):
                lines.append(f"{number}\t{_prediction(task.config, task.class_names, record)}")
            with replaced_file(path) as temporary:
                temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return list(self.paths.values())


def plan_submission(
    task: Task[Any], hub: HubConfig, folder: Path, overwrite: bool = False
) -> Submission:
    """Return what is to be predicted into which files, before a model is loaded.

    Raises:
        UserError: the task is none of GLUE's, its data has no test split, or a file is there
            already and `overwrite` is false.
    """
    config: Any = task.config
    names = getattr(config, "submission", [])  # other families have none
    if not names:
        raise UserError(f"--glue-submission: the run's task, {config.name}, is none of GLUE's")
    paths = {}
    for split, name in zip(config.test_splits, names, strict=True):
        paths[split] = folder / f"{name}.tsv"
    for path in paths.values():
        refuse_existing("--glue-submission", path, overwrite)
    splits = open_splits(config, hub)
    for split in paths:
        if split not in splits:
            known = ", ".join(splits)
            raise UserError(f"{describe(config, split)}: there is none; it has {known}")
    make_folder("--glue-submission", folder)
    rows = {}
    for split in paths:
        rows[split] = task.check(splits[split], describe(config, split), labelled=False)
    return Submission(rows=rows, paths=paths)


def _prediction(
    config: TextClassificationConfig, class_names: Sequence[str], record: Record
) -> str:
    """Return a prediction as the site wants it: a score, a class's name, or its number."""
    if config.target == "number":
        score = min(LARGEST_SCORE, max(0.0, record["score"]))
        return f"{score:.3f}"
    label = record["label"]
    if config.submission_by_name:
        return str(label)
    return str(class_names.index(label))
