"""Every file in a run's folder: its name, stated once, and how it is read.

    .hydra/               the configuration and the overrides that it was made from
    checkpoints/          what a killed run goes on from
    adapter/              the exported adapter, or over_budget/ in its place
    metrics.csv           the history
    ranks.json            kept rank by matrix, in model order
    rank_history.json     the same after every pruning
    rank_map.png          a drawing of it, and rank_map.svg and rank_map.pdf for papers
    metrics.json          the results, written last: a run that has it is finished
    run_files.json        what the run has written: only that is ever replaced or removed
    run.lock              held by the process at work
    error.txt, output.txt, running.json    written by a sweep about its run
    wandb/, tensorboard/  the tracker's own

Imports nothing heavy, because launchers load it on the machine where the run is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynarank.errors import UserError

METRICS = "metrics.json"
HISTORY = "metrics.csv"
RANKS = "ranks.json"
RANK_HISTORY = "rank_history.json"
RANK_MAP = "rank_map.png"
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
OVER_BUDGET = "over_budget"
"""Holds the adapter of a run that ended before its ranks were frozen, in place of `adapter`."""
ORIGIN = "dynarank.json"
"""Written beside every adapter: the task, and where the base model came from."""
PREDICTIONS = "predictions.json"
PREDICTION_LINES = "predictions.jsonl"
HYDRA = ".hydra"
CONFIG = f"{HYDRA}/config.yaml"
OVERRIDES = f"{HYDRA}/overrides.yaml"
FILES = "run_files.json"
LOCK = "run.lock"
LOCK_OWNER = "run.lock.json"
"""Names the process that holds the lock."""
ERROR = "error.txt"
OUTPUT = "output.txt"
RUNNING = "running.json"
TRACKER = "wandb"
TENSORBOARD = "tensorboard"
TRACKER_RUN = f"{TRACKER}/run_id"

LARGEST_INTEGER = 2**53
"""Of a score in metrics.json; a larger one is damage, and may not fit a float."""
ERROR_LINES = 40
"""The last lines of a failed run's output that error.txt keeps."""


def is_finished(folder: Path) -> bool:
    """Return whether the folder holds a run that came to its end."""
    return (folder / METRICS).is_file()


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at line {error.lineno}"
    except OSError as error:
        reason = str(error.strerror)
    except (ValueError, RecursionError) as error:  # not UTF-8, too many digits or brackets
        reason = type(error).__name__
    raise UserError(f"{path}: is damaged ({reason}). Run it again, or move it away")


def read_record(folder: Path) -> dict[str, Any]:
    """Return the results of a finished run, as metrics.json holds them.

    Raises:
        UserError: metrics.json is damaged, or holds no results.
    """
    path = folder / METRICS
    record = read_json(path)
    if not isinstance(record, dict) or not _holds_scores(record):
        raise UserError(f"{path}: is damaged (it holds no results). Run it again, or move it away")
    return record


def _holds_scores(record: dict[str, Any]) -> bool:
    """Return whether a record names a metric, and holds a number or null for it."""
    selected = record.get("selected")
    metric = selected.get("metric") if isinstance(selected, dict) else None
    for group in ("metrics", "last"):
        # Records of earlier versions lack the last epoch's scores, and are read all the same.
        if group == "last" and group not in record:
            continue
        scores = record.get(group)
        if not isinstance(metric, str) or not isinstance(scores, dict) or metric not in scores:
            return False
        value = scores[metric]
        # To Python, a bool is an int too.
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            return False
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            return False
    return True


def selected_score(record: Mapping[str, Any], last: bool = False) -> float:
    """Return the selecting metric at the selected epoch, or at the last one; NaN where it is null.

    Args:
        record: as `read_record` returns it.
        last: whether the last epoch's is wanted.
    """
    scores = record["last" if last else "metrics"]
    value = scores[record["selected"]["metric"]]
    return float("nan") if value is None else float(value)


def read_ranks(folder: Path) -> dict[str, int]:
    """Return the kept rank by matrix, in model order; empty for a method without ranks.

    Raises:
        UserError: ranks.json is damaged.
    """
    path = folder / RANKS
    if not path.is_file():
        return {}
    ranks = read_json(path)
    if not isinstance(ranks, dict):
        raise UserError(f"{path}: is damaged (it holds no ranks). Run it again, or move it away")
    return ranks


def read_overrides(folder: Path) -> list[str] | None:
    """Return what was given on the run's command line; None where it is not recorded."""
    record = folder / OVERRIDES
    if not record.is_file():
        return None
    from omegaconf import OmegaConf

    return [str(override) for override in OmegaConf.load(record)]


def write_failure(folder: Path, reason: str, output: Sequence[str] = ()) -> None:
    """Record why there is no finished run, and the last lines of what it said."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [reason, *output[-ERROR_LINES:]]
    (folder / ERROR).write_text("\n".join(lines) + "\n")


def read_failure(folder: Path) -> list[str] | None:
    """Return the lines of error.txt; None where no failure is recorded."""
    record = folder / ERROR
    # A run's output ends up in it, and may hold any bytes.
    return record.read_text(errors="replace").splitlines() if record.is_file() else None


def failure_reason(lines: Sequence[str]) -> str:
    """Return the line of a run's output that says what went wrong."""
    errors = [line for line in lines if line.startswith("error: ")]
    candidates = errors or list(lines) or ["no output"]
    return candidates[-1].removeprefix("error: ")
