"""The adapter in a run's folder: its weights, its tokenizer, and what is needed to use it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.adapters.adapter_checks import CONFIG
from dynarank.checkpoints.identity import package_versions
from dynarank.config.schema import TrainConfig
from dynarank.durable_files import TEMPORARY, make_readable, write_json
from dynarank.pretrained.processors import PROCESSORS, Processor
from dynarank.run_folder import ADAPTER, ORIGIN, OVER_BUDGET
from dynarank.runs.model_card import CARD, model_card
from dynarank.runs.own_files import OwnFiles, announce_files, read_own_files, remove_files

if TYPE_CHECKING:
    from dynarank.pretrained.hub import Source
    from dynarank.runs.prepare import Prepared
    from dynarank.runs.results import Results
    from dynarank.tasks.base import Task

log = logging.getLogger(__name__)

EXPORTS = (f"{ADAPTER}/", f"{OVER_BUDGET}/")
"""What the names of exported files begin with."""


def write_adapter(folder: Path, config: TrainConfig, prepared: Prepared, results: Results) -> None:
    """Write the adapter with its tokenizer, its origin, and its model card.

    One that is over budget goes to a folder of its own, with a warning. The files are written
    beside their place and moved when all are whole.
    """
    at_budget = prepared.module.at_budget
    if not at_budget and not any(prepared.method.ranks().values()):
        log.warning(
            "the run ended before its ranks were frozen, and before it had learned anything to "
            "export"
        )
        return
    name = ADAPTER if at_budget else OVER_BUDGET
    staging = folder / f"{name}{TEMPORARY}"
    shutil.rmtree(staging, ignore_errors=True)  # what a killed process left, under a name of ours
    processor = PROCESSORS[prepared.task.processor]
    save_processor(processor, prepared.pretrained.tokenizer, staging)
    prepared.method.export(staging, prepared.source.recorded, prepared.task.peft_task_type)
    # What `predict` compares, so that the adapter is not used with another base or tokenizer.
    digests = {
        "base_weights": prepared.identity["base_weights"],
        "tokenizer": processor.digest(prepared.pretrained.tokenizer),
    }
    write_origin(staging, config, prepared.task, prepared.source, digests)
    card = model_card(
        results,
        config,
        base=prepared.source.recorded,
        auto_class=prepared.task.auto_class,
        peft_task_type=prepared.task.peft_task_type,
        model_options=prepared.task.model_options(),
        is_peft=(staging / CONFIG).is_file(),
    )
    (staging / CARD).write_text(card, encoding="utf-8")
    make_readable(staging)
    _move_files(staging, folder / name)
    if not at_budget:
        log.warning(
            "the run ended before its ranks were frozen: its adapter is over budget, and lies in "
            "%s",
            folder / name,
        )


def _move_files(source: Path, target: Path) -> None:
    """Move a folder's files into another one, and note them as the run's own before."""
    names = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    announce_files(target.parent, [f"{target.name}/{name.as_posix()}" for name in names])
    for name in names:
        move_file(source / name, target / name)
    shutil.rmtree(source)


def move_file(source: Path, target: Path) -> None:
    """Move a file within a file system, over an earlier one of the run's."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def remove_adapters(folder: Path) -> None:
    """Remove the files that an earlier end of this run exported, or part of them."""
    own = read_own_files(folder) or OwnFiles()
    remove_files(folder, [name for name in own.files if name.startswith(EXPORTS)])


def save_processor(processor: Processor, tokenizer: Any, folder: Path) -> None:
    """Save the tokenizer, or what else reads the inputs, beside the adapter."""
    processor.save(tokenizer, folder)


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
        # `predict` looks there where the path leads nowhere any more.
        "model": {**asdict(config.model), "found": source.path},
        "task": asdict(task.recorded_config()),
        "method": asdict(config.method),
        "budget": asdict(config.budget),
        "dem": asdict(config.dem),
        "digests": dict(digests),
        "versions": package_versions(),
    }
    write_json(folder / ORIGIN, origin)
