"""The adapter in a run's folder: its weights, its tokenizer, and what is needed to use it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.checkpoints.identity import package_versions
from dynarank.config.schema import TrainConfig
from dynarank.durable_files import write_json
from dynarank.pretrained.digests import tokenizer_digest
from dynarank.run_folder import ADAPTER, ORIGIN, OVER_BUDGET

if TYPE_CHECKING:
    from dynarank.pretrained.hub import Source
    from dynarank.runs.prepare import Prepared
    from dynarank.tasks.base import Task

log = logging.getLogger(__name__)


def write_adapter(folder: Path, config: TrainConfig, prepared: Prepared) -> None:
    """Write the adapter with its tokenizer and its origin.

    One that is over budget goes to a folder of its own, with a warning.
    """
    at_budget = prepared.module.at_budget
    if not at_budget and not any(prepared.method.ranks().values()):
        log.warning(
            "the run ended before its ranks were frozen, and before it had learned anything to "
            "export"
        )
        return
    adapter = folder / (ADAPTER if at_budget else OVER_BUDGET)
    prepared.pretrained.tokenizer.save_pretrained(adapter)
    prepared.method.export(adapter, prepared.source.recorded, prepared.task.peft_task_type)
    digests = {
        "base_weights": prepared.identity["base_weights"],
        "tokenizer": tokenizer_digest(prepared.pretrained.tokenizer),
    }
    write_origin(adapter, config, prepared.task, prepared.source, digests)
    if not at_budget:
        log.warning(
            "the run ended before its ranks were frozen: its adapter is over budget, and lies in "
            "%s",
            adapter,
        )


def remove_adapters(folder: Path) -> None:
    """Remove what an earlier run, or part of one, exported."""
    for name in (ADAPTER, OVER_BUDGET):
        shutil.rmtree(folder / name, ignore_errors=True)


def write_origin(
    folder: Path,
    config: TrainConfig,
    task: Task[Any],
    source: Source,
    digests: Mapping[str, str],
) -> None:
    """Write what `dynarank predict` needs of an adapter: its task, and its base model's place.

    Args:
        digests: digests of the base weights and of the tokenizer, compared when it is loaded.
    """
    origin: dict[str, Any] = {
        "model": {**asdict(config.model), "found": source.path},
        "task": asdict(task.recorded_config()),
        "method": asdict(config.method),
        "budget": asdict(config.budget),
        "dem": asdict(config.dem),
        "digests": dict(digests),
        "versions": package_versions(),
    }
    write_json(folder / ORIGIN, origin)
