"""One run from configuration to results: prepare, train, select at budget, export."""

from __future__ import annotations

import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from dynarank.checkpoints.callback import Checkpoints
from dynarank.checkpoints.compact import expand
from dynarank.checkpoints.lock import locked
from dynarank.checkpoints.resume import bring
from dynarank.checkpoints.signals import Signals
from dynarank.checkpoints.storage import DamagedCheckpoint, checkpoint_path, read_checkpoint, verify
from dynarank.config.schema import TrainConfig
from dynarank.errors import Interrupted
from dynarank.run_folder import OVER_BUDGET
from dynarank.runs.failures import failures_said
from dynarank.runs.preflight import check_output_dir
from dynarank.runs.prepare import Prepared, prepare
from dynarank.runs.record import (
    Results,
    gather_artifacts,
    print_summary,
    read_results,
    write_artifacts,
    write_origin,
    write_results,
)
from dynarank.runs.trainer import build_trainer, fit, quiet_libraries
from dynarank.training.data import TaskData
from dynarank.training.distributed import is_first
from dynarank.training.module import SELECTION, FineTuning

log = logging.getLogger(__name__)


def run(config: TrainConfig) -> Results:
    """Train one configuration and leave its folder complete (see README, "A run's folder").

    Raises:
        UserError: anything that the user can mend, before training starts; or what `failures_said` knows, in training.
        Interrupted: a signal came; what was trained is saved, once training had begun.
    """
    start = time.monotonic()
    quiet_libraries()
    if not is_first():
        logging.getLogger("dynarank").setLevel(logging.ERROR)  # one rank speaks for all
    folder = check_output_dir(config.output_dir)
    with locked(folder), Signals() as signals:
        try:
            return train(config, folder, signals, start)
        except Interrupted as error:
            error.folder = folder
            raise


def train(config: TrainConfig, folder: Path, signals: Signals, start: float) -> Results:
    """`run`, in a folder that is ours alone. `start` is when it began, on `time.monotonic`'s clock."""
    prepared = prepare(config, folder)
    elsewhere = (
        prepared.resumption
        and prepared.resumption.path.parent.resolve() != (folder / "checkpoints").resolve()
    )
    if prepared.resumption is None or elsewhere:
        if is_first():
            start_over(folder)
            if prepared.resumption:
                bring(prepared.resumption, folder)
    elif (folder / "metrics.json").is_file():
        log.info("the run is finished already")
        return read_results(folder)
    checkpoints = Checkpoints(
        folder / "checkpoints",
        config.checkpoint,
        prepared.identity,
        signals,
        prepared.resumption,
        start,
    )
    trainer = build_trainer(config, folder, prepared, checkpoints)
    with failures_said(config, folder):
        fit(trainer, prepared)
        return finish(config, folder, prepared, trainer, checkpoints)


def start_over(folder: Path) -> None:
    """Remove what an earlier run left that would be taken for this one's."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    remove_adapters(folder)
    (folder / "metrics.json").unlink(missing_ok=True)


def write_adapter(folder: Path, config: TrainConfig, prepared: Prepared) -> None:
    """The adapter with its tokenizer and origin; apart, and with a warning, where it is over budget."""
    within = prepared.module.at_budget
    adapter = folder / ("adapter" if within else OVER_BUDGET)
    if not within and not any(prepared.method.ranks().values()):
        log.warning(
            "the run ended before its ranks were frozen, and before it had learned anything to export"
        )
        return
    prepared.pretrained.tokenizer.save_pretrained(adapter)
    prepared.method.export(adapter, prepared.source.recorded, prepared.task.peft_task_type)
    write_origin(adapter, config, prepared.task, prepared.source)
    if not within:
        log.warning(
            "the run ended before its ranks were frozen: its adapter is over budget, and lies in %s",
            adapter,
        )


def remove_adapters(folder: Path) -> None:
    """Remove what an earlier run, or part of one, exported."""
    for name in ("adapter", OVER_BUDGET):
        shutil.rmtree(folder / name, ignore_errors=True)


def finish(
    config: TrainConfig,
    folder: Path,
    prepared: Prepared,
    trainer: pl.Trainer,
    checkpoints: Checkpoints,
) -> Results:
    """Score, select, export and record what was trained."""
    module, data, method = prepared.module, prepared.data, prepared.method
    if module.average is not None:
        module.average.apply(module)
    last = score_last(trainer, module, data)
    last_score = last[config.task.select]
    if data.sample is not None:
        data.sample = None
        last = validate(trainer, module, data)
    selected = restore_best(trainer, module, checkpoints, last_score)
    metrics = last if selected["step"] == trainer.global_step else validate(trainer, module, data)
    ranks = method.ranks()
    if trainer.global_step < module.total_steps:
        log.warning(
            "trainer.max_time ended the run after %d of %d steps",
            trainer.global_step,
            module.total_steps,
        )
    first = trainer.is_global_zero
    if first:
        remove_adapters(folder)  # a killed finish may have left part of one
        write_adapter(folder, config, prepared)
    results = Results(
        task=config.task.name,
        method=config.method.name,
        model=config.model.name,
        seed=config.seed,
        metrics=metrics,
        selected={"metric": config.task.select, **selected},
        last=last,
        at_budget=module.at_budget,
        budget_target=config.budget.target if ranks else None,
        components_target=config.budget.target * len(ranks)
        if ranks and config.budget.unit == "components"
        else None,
        components_kept=sum(ranks.values()),
        adapter_parameters=method.adapter_parameters(),
        head_parameters=prepared.head_parameters,
        model_parameters=prepared.model_parameters,
        total_steps=module.total_steps,
        lr=config.lr,
        epochs=config.epochs,
        batch_size=config.batch_size,
        seconds=round(checkpoints.seconds, 1),
        output_dir=str(folder),
        ranks=ranks,
        resumed_at=checkpoints.resumed_at,
        inexact_resume=checkpoints.inexact,
    )
    history = module.allocation.history if module.allocation else []
    artifacts = gather_artifacts(module)
    if first:
        write_artifacts(artifacts, folder)
        write_results(results, config.budget.initial, history, folder)
        finish_trackers(trainer, results)
        print_summary(results)
    trainer.strategy.barrier()
    return results


def score_last(trainer: pl.Trainer, module: FineTuning, data: TaskData) -> dict[str, float]:
    """Validation scores of the last step's weights; scored now where max_steps ended the run inside an epoch."""
    if not module.history or module.history[-1]["step"] != trainer.global_step:
        return validate(trainer, module, data)
    return {
        name: value for name, value in module.history[-1].items() if name not in ("epoch", "step")
    }


def restore_best(
    trainer: pl.Trainer, module: FineTuning, checkpoints: Checkpoints, last_score: float
) -> dict[str, Any]:
    """Put the best weights at budget back; returns their epoch and step. The last ones stay where none are better."""
    last = {"epoch": trainer.current_epoch, "step": trainer.global_step}
    best = checkpoints.best
    if best is None or best["score"] <= (-math.inf if math.isnan(last_score) else last_score):
        return last
    path = checkpoint_path(checkpoints.folder, best["step"])
    try:
        verify(path)
    except DamagedCheckpoint as error:
        log.warning("the best checkpoint is damaged, and the last weights are taken: %s", error)
        return last
    checkpoint = read_checkpoint(path)
    expand(checkpoint)
    assert module.unlike(checkpoint["state_dict"]) is None
    module.load_state_dict(
        {**checkpoint["state_dict"], **checkpoint.get("average", {})}, strict=False
    )
    return {"epoch": best["epoch"], "step": best["step"]}


def validate(trainer: pl.Trainer, module: FineTuning, data: TaskData) -> dict[str, float]:
    """Validation scores of the model as it is."""
    logged = trainer.validate(module, data, verbose=False)
    merged = {
        name.removeprefix("val/"): value for scores in logged for name, value in scores.items()
    }
    return {
        name: value
        for name, value in merged.items()
        if name != SELECTION and not name.endswith("loss")
    }


def finish_trackers(trainer: pl.Trainer, results: Results) -> None:
    """Leave the final numbers in the tracker and close it, so that a sweep's next run opens its own."""
    from lightning.pytorch.loggers import WandbLogger

    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            final = {f"final/{name}": value for name, value in results.metrics.items()}
            final |= {
                "final/components": results.components_kept,
                "final/adapter_parameters": results.adapter_parameters,
            }
            logger.experiment.summary.update(final)
            logger.experiment.finish()
        logger.finalize("success")
