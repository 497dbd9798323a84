"""The end of a run: score what was trained, select the best at budget, export, and record.

Each step takes what the step before it returns, so that none can be left out and their order cannot
be changed. metrics.json comes last: a run without it is finished anew from its last checkpoint.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from dynarank.checkpoints.callback import Checkpoints
from dynarank.checkpoints.content import RunContent, history_rows
from dynarank.checkpoints.storage import DamagedCheckpoint, checkpoint_path, verify
from dynarank.config.schema import TrainConfig
from dynarank.rounding import round_half_up
from dynarank.runs.export import remove_adapters, write_adapter
from dynarank.runs.prepare import Prepared
from dynarank.runs.results import Results, gather_artifacts, write_artifacts, write_results
from dynarank.runs.summary import print_summary
from dynarank.tasks.baselines import baseline_record
from dynarank.training.data import TaskData
from dynarank.training.module import FineTuning
from dynarank.training.split_scores import COLLAPSED, PLACE, SELECTION
from dynarank.training.tensorboard_tracker import TensorBoardTracker
from dynarank.training.wandb_tracker import WandbTracker

log = logging.getLogger(__name__)

Metrics = dict[str, float]


@dataclass
class Trained:
    """A run whose training is over."""

    config: TrainConfig
    folder: Path
    prepared: Prepared
    trainer: pl.Trainer
    checkpoints: Checkpoints


@dataclass
class Scored:
    """A run whose last weights are scored on all validation rows."""

    trained: Trained
    selecting_score: float
    """The last value of the metric that selects, as it stood when checkpoints were compared."""
    last: Metrics


@dataclass
class Selected:
    """A run that holds its best weights at budget, and their scores."""

    scored: Scored
    epoch: int
    step: int
    metrics: Metrics


@dataclass
class Tested:
    """A run whose selected weights are scored on the test rows, where there are any."""

    selected: Selected
    metrics: Metrics | None
    """None where no test was asked for."""


@dataclass
class Exported:
    """A run whose adapter lies in its folder."""

    tested: Tested


def finish(trained: Trained) -> Results:
    """Score, select, test, export and record what was trained."""
    scored = score(trained)
    selected = select(scored)
    tested = score_test(selected)
    exported = export(tested)
    return record(exported)


def score(trained: Trained) -> Scored:
    """Score the last weights, or their average."""
    trainer, module, data = trained.trainer, trained.prepared.module, trained.prepared.data
    if module.average is not None:
        module.average.apply(module)  # validations within `fit` saw it, too
    last = _score_last(trained)
    selecting_score = last[trained.config.task.select]
    if data.sample is not None:
        # Checkpoints were compared on a sample of the rows. What is reported is scored on all.
        data.sample = None
        last = validate(trainer, module, data)
    return Scored(trained=trained, selecting_score=selecting_score, last=last)


def _score_last(trained: Trained) -> Metrics:
    """Return the scores of the last step's weights.

    They are scored now where max_steps ended the run inside an epoch. Where an earlier process
    scored them, this one sees the rows again: the task's own files are made of that.
    """
    trainer, module, data = trained.trainer, trained.prepared.module, trained.prepared.data
    resumption = trained.prepared.resumption
    scored_before = resumption is not None and resumption.manifest.step == trainer.global_step
    is_scored = bool(module.history) and module.history[-1]["step"] == trainer.global_step
    if not is_scored:
        return validate(trainer, module, data)
    if scored_before:
        _see_again(trainer, module, data)
    last = dict(module.history[-1])
    del last["epoch"], last["step"]
    return last


def _see_again(trainer: pl.Trainer, module: FineTuning, data: TaskData) -> None:
    """Have the validation rows predicted, and log nothing: their scores are in the history."""
    loggers = trainer.loggers
    trainer.loggers = []
    try:
        validate(trainer, module, data)
    finally:
        trainer.loggers = loggers


def validate(trainer: pl.Trainer, module: FineTuning, data: TaskData) -> Metrics:
    """Return the validation scores of the model as it is."""
    metrics = {}
    for logged in trainer.validate(module, data, verbose=False):
        for name, value in logged.items():
            if name not in (SELECTION, COLLAPSED, *PLACE) and not name.endswith("loss"):
                metrics[name.removeprefix("val/")] = value
    return metrics


def select(scored: Scored) -> Selected:
    """Put the best weights at budget back, and score them; the last stay where none are better."""
    trained = scored.trained
    trainer, module = trained.trainer, trained.prepared.module
    best = _better_checkpoint(trained.checkpoints, scored.selecting_score)
    if best is None:
        epoch, step = trainer.current_epoch, trainer.global_step
    else:
        RunContent(module).load_weights(checkpoint_path(trained.checkpoints.folder, best["step"]))
        epoch, step = best["epoch"], best["step"]
    metrics = scored.last  # they stay where these weights are the selected ones
    if step != trainer.global_step:
        metrics = validate(trainer, module, trained.prepared.data)
    return Selected(scored=scored, epoch=epoch, step=step, metrics=metrics)


def _better_checkpoint(checkpoints: Checkpoints, last_score: float) -> dict[str, Any] | None:
    """Return the best validation at budget where it is better than the last, and still whole."""
    best = checkpoints.best
    last = -math.inf if math.isnan(last_score) else last_score  # NaN is worse than any score
    if best is None or best["score"] <= last:
        return None
    try:
        verify(checkpoint_path(checkpoints.folder, best["step"]))
    except DamagedCheckpoint as error:
        log.warning("the best checkpoint is damaged, and the last weights are taken: %s", error)
        return None
    return best


def score_test(selected: Selected) -> Tested:
    """Score the selected weights on the test rows, once, where these are asked for."""
    trained = selected.scored.trained
    module, data = trained.prepared.module, trained.prepared.data
    if not trained.prepared.task.test:
        return Tested(selected=selected, metrics=None)
    (logged,) = trained.trainer.test(module, data, verbose=False)  # there is one test split at most
    metrics = {}
    for name, value in logged.items():
        if name not in PLACE:
            metrics[name.removeprefix("test/")] = value
    return Tested(selected=selected, metrics=metrics)


def export(tested: Tested) -> Exported:
    """Write the adapter into the run's folder."""
    trained = tested.selected.scored.trained
    trainer, module = trained.trainer, trained.prepared.module
    if trainer.global_step < module.total_steps:
        reason = "trainer.max_time ended the run"
        if trainer.current_epoch >= trained.config.epochs:
            reason = "the loss scaler of trainer.precision=16-mixed skipped steps: the epochs ended"
        log.warning("%s after %d of %d steps", reason, trainer.global_step, module.total_steps)
    if trainer.is_global_zero:
        remove_adapters(trained.folder)  # a killed finish may have left part of one
        write_adapter(trained.folder, trained.config, trained.prepared, _results(tested))
    return Exported(tested=tested)


def record(exported: Exported) -> Results:
    """Write the task's own files, the ranks and metrics.json, and print them."""
    trained = exported.tested.selected.scored.trained
    trainer, module = trained.trainer, trained.prepared.module
    results = _results(exported.tested)
    history = module.allocation.history if module.allocation else []
    artifacts = gather_artifacts(module)
    if trainer.is_global_zero:
        history_rows(trainer)  # have all of them written before their digest is taken
        write_artifacts(artifacts, trained.folder)
        write_results(results, trained.config.budget.initial, history, trained.folder)
        # After metrics.json: a tracker may wait for its server, and the run is finished by then.
        finish_trackers(trainer, results)
        print_summary(results)
    trainer.strategy.barrier()
    return results


def _results(tested: Tested) -> Results:
    selected = tested.selected
    scored = selected.scored
    trained = scored.trained
    config, prepared, checkpoints = trained.config, trained.prepared, trained.checkpoints
    ranks = prepared.method.ranks()
    target = config.budget.target
    task = prepared.task
    return Results(
        task=config.task.name,
        method=config.method.name,
        model=config.model.name,
        seed=config.seed,
        metrics=selected.metrics,
        selected={
            "metric": config.task.select,
            "epoch": selected.epoch,
            "step": selected.step,
        },
        last=scored.last,
        baseline=baseline_record(task, task.validation),
        collapsed=prepared.module.collapsed,
        test_metrics=tested.metrics,
        test_baseline=baseline_record(task, task.test),
        test_rows=sum(len(rows) for rows in task.test.values()),
        at_budget=prepared.module.at_budget,
        budget_target=target if ranks else None,
        components_target=_components_target(config, prepared, ranks),
        components_kept=sum(ranks.values()),
        adapter_parameters=prepared.method.adapter_parameters(),
        head_parameters=prepared.head_parameters,
        model_parameters=prepared.model_parameters,
        total_steps=prepared.module.total_steps,
        lr=config.lr,
        epochs=config.epochs,
        batch_size=config.batch_size,
        seconds=round(checkpoints.seconds, 1),
        output_dir=str(trained.folder),
        ranks=ranks,
        resumed_at=checkpoints.resumed_at,
        inexact_resume=checkpoints.inexact,
    )


def _components_target(
    config: TrainConfig, prepared: Prepared, ranks: dict[str, int]
) -> int | None:
    """Return how many components the budget has room for; None where it counts something else."""
    if not ranks or config.budget.unit != "components":
        return None
    if prepared.module.allocation is None:
        return sum(ranks.values())  # ranks that were fixed by the budget's parameters
    return round_half_up(config.budget.target * len(ranks))


def finish_trackers(trainer: pl.Trainer, results: Results) -> None:
    """Leave the final numbers in the tracker, and close it.

    The next run of a sweep opens its own.
    """
    for logger in trainer.loggers:
        if isinstance(logger, WandbTracker | TensorBoardTracker):
            final: dict[str, Any] = {
                "final/components": results.components_kept,
                "final/adapter_parameters": results.adapter_parameters,
            }
            for name, value in results.metrics.items():
                final[f"final/{name}"] = value
            for name, value in (results.test_metrics or {}).items():
                final[f"final/test/{name}"] = value
            for name, value in results.baseline_metrics.items():
                final[f"final/baseline/{name}"] = value
            final["final/collapsed"] = results.collapsed or "no"
            logger.finish(final)
        logger.finalize("success")  # Lightning's own came before `finish`
