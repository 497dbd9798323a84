"""Whether metrics.json holds what a report reads of it, of the right types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynarank.report.run_reader import (
    UnreadableFile,
    is_count,
    is_number,
    is_score,
    read_json,
    shown,
)

LONGEST_NAME = 200


def check_results(path: Path) -> dict[str, Any]:
    """Return the content of metrics.json, with the fields that a report reads, of their types.

    Raises:
        UnreadableFile: the file cannot be read, or a field is missing or of another type.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise UnreadableFile(path, "is damaged (it does not hold results by name)")
    for name in ("task", "method", "model"):
        value = record.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME:
            raise UnreadableFile(path, f"is damaged ({name} is {shown(value)}, not a name)")
    if not isinstance(record.get("at_budget"), bool):
        raise UnreadableFile(path, "is damaged (at_budget is neither true nor false)")
    _check_numbers(path, record)
    selected = record.get("selected")
    if not isinstance(selected, dict) or not isinstance(selected.get("metric"), str):
        raise UnreadableFile(path, "is damaged (selected.metric is missing)")
    for group in ("metrics", "last"):
        _check_scores(path, group, record.get(group), selected["metric"])
    _check_test_scores(path, record)
    return record


def _check_numbers(path: Path, record: dict[str, Any]) -> None:
    for name in ("seed", "adapter_parameters"):
        if not is_count(record.get(name)):
            raise UnreadableFile(path, f"is damaged ({name} is {shown(record.get(name))})")
    for name, fits in (("total_steps", is_count), ("seconds", is_number)):
        value = record.get(name)
        if value is not None and not fits(value):
            raise UnreadableFile(path, f"is damaged ({name} is {shown(value)})")


def _check_test_scores(path: Path, record: dict[str, Any]) -> None:
    """Raise `UnreadableFile` where there are test scores that are none."""
    scores = record.get("test_metrics")
    if scores is None:
        return
    if not isinstance(scores, dict) or not all(is_score(value) for value in scores.values()):
        raise UnreadableFile(path, f"is damaged (test_metrics is {shown(scores)})")


def _check_scores(path: Path, group: str, scores: object, metric: str) -> None:
    if not isinstance(scores, dict) or metric not in scores:
        # A damaged file may hold names of any length.
        raise UnreadableFile(path, f"is damaged ({group}.{metric[:60]} is missing)")
    for name, value in scores.items():
        if not is_score(value):
            reason = f"is damaged ({group}.{name[:60]} is {shown(value)}, no score)"
            raise UnreadableFile(path, reason)
