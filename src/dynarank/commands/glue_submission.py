"""A task's test set in the form that the GLUE site takes: `index` and `prediction`, a file a test split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.tasks.sources import describe, open_splits

if TYPE_CHECKING:
    from dynarank.commands.predict import Predictor

FILES = {
    ("cola", "test"): "CoLA",
    ("sst2", "test"): "SST-2",
    ("mrpc", "test"): "MRPC",
    ("stsb", "test"): "STS-B",
    ("qqp", "test"): "QQP",
    ("mnli", "test_matched"): "MNLI-m",
    ("mnli", "test_mismatched"): "MNLI-mm",
    ("qnli", "test"): "QNLI",
    ("rte", "test"): "RTE",
    ("wnli", "test"): "WNLI",
}
"""The site's file names, by subset and split."""
NAMED = ("mnli", "qnli", "rte")
"""Subsets whose classes the site wants by name; of others, by number."""


def write_submission(
    predictor: Predictor, hub: HubConfig, folder: Path, batch_size: int = 32
) -> list[Path]:
    """Predict the task's test splits into the site's files; returns their paths. Raises `UserError`."""
    config = predictor.task.config
    wanted = {split: name for (subset, split), name in FILES.items() if subset == config.subset}
    if not wanted or not str(config.path).endswith("glue"):
        raise UserError(f"--glue-submission: the run's task, {config.name}, is none of GLUE's")
    splits = open_splits(config, hub)
    missing = [split for split in wanted if split not in splits]
    if missing:
        raise UserError(
            f"{describe(config, missing[0])}: there is none; it has {', '.join(splits)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for split, name in wanted.items():
        rows = predictor.task.check(splits[split], describe(config, split), labelled=False)
        lines = [_value(config, record) for record in predictor(rows, batch_size)]
        index = rows["idx"][:] if "idx" in rows.column_names else range(len(rows))
        path = folder / f"{name}.tsv"
        table = "".join(f"{number}\t{line}\n" for number, line in zip(index, lines, strict=True))
        path.write_text(f"index\tprediction\n{table}")
        written.append(path)
    return written


def _value(config: Any, record: dict[str, Any]) -> str:
    if config.target == "number":
        return f"{min(5.0, max(0.0, record['score'])):.3f}"
    return str(record["label"] if config.subset in NAMED else config.labels.index(record["label"]))
