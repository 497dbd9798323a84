"""The test set of a GLUE task in the form that the GLUE site takes.

A file for each test split, with the columns `index` and `prediction`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.commands.command_line import make_folder, refuse_existing, replaced_file
from dynarank.errors import UserError
from dynarank.tasks.sources import describe, open_splits

if TYPE_CHECKING:
    from dynarank.pretrained.hub import HubConfig
    from dynarank.runs.predictor import Predictor, Record
    from dynarank.tasks.config import TextClassificationConfig

LARGEST_SCORE = 5.0
"""STS-B's scores lie between 0 and this."""


def write_submission(
    predictor: Predictor,
    hub: HubConfig,
    folder: Path,
    batch_size: int = 32,
    overwrite: bool = False,
) -> list[Path]:
    """Predict the task's test splits into the site's files, and return their paths.

    Raises:
        UserError: the task is none of GLUE's, its data has no test split, or a file is there
            already and `overwrite` is false.
    """
    task: Any = predictor.task
    config = task.config
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
    for split, path in paths.items():
        rows = task.check(splits[split], describe(config, split), labelled=False)
        records = predictor(rows, batch_size)
        numbers = rows["idx"][:] if "idx" in rows.column_names else range(len(rows))
        lines = ["index\tprediction"]
        for number, record in zip(numbers, records, strict=True):
            lines.append(f"{number}\t{_prediction(config, task.class_names, record)}")
        with replaced_file(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return list(paths.values())


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
