"""One run from configuration to results: check, load, adapt, train, select at budget, export."""

from __future__ import annotations

import logging
import math
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from torch import nn

from dynarank.errors import UserError
from dynarank.methods import build_method
from dynarank.methods.base import Method
from dynarank.models import Pretrained, check_fit, check_length, load_pretrained, load_tokenizer, resolve_targets
from dynarank.tasks import build_task
from dynarank.tasks.base import Task
from dynarank.training.config import TrainConfig
from dynarank.training.data import TaskData
from dynarank.training.module import SELECTION, FineTuning
from dynarank.training.nonfinite import NonFiniteError
from dynarank.training.optimizer import resolve_total_steps
from dynarank.training.preflight import check_machine, check_output_dir, locate_model
from dynarank.training.results import Results, print_summary, write_artifacts, write_origin, write_results
from dynarank.training.tracking import build_loggers

log = logging.getLogger(__name__)


def run(config: TrainConfig) -> Results:
    """Train one configuration and leave its folder complete (see README, "A run's folder").

    Raises:
        UserError: anything that the user can mend, before training starts; or a loss that is not finite, in training.
    """
    start = time.monotonic()
    quiet_libraries()
    folder = check_output_dir(config.output_dir)
    check_machine(config.trainer)
    source = locate_model(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)

    task = build_task(config.task)
    check_fit(config.model, source, task)
    task.read(config.hub, config.seed)
    tokenizer = load_tokenizer(config.model, source)
    pretrained = load_pretrained(config.model, source, task, tokenizer)
    model_parameters = sum(parameter.numel() for parameter in pretrained.model.parameters())
    head_parameters = sum(p.numel() for name in pretrained.head for p in pretrained.model.get_submodule(name).parameters())
    method = build_method(config.method, config.budget, config.dem)
    task.encode(tokenizer, pretrained.model)
    model = adapt(pretrained, method, config)

    data = TaskData(task, tokenizer, config.batch_size, config.seed, config.trainer.workers)
    check_length(model, data.longest, task.length_setting)
    for setting, tokens in task.generated_lengths().items():
        check_length(model, tokens, setting, generated=True)
    total_steps = resolve_total_steps(
        data.batches_per_epoch, config.epochs, config.trainer.accumulate, config.trainer.max_steps
    )
    module = FineTuning(model, task, method, config.optimizer, config.lr, total_steps)
    say_plan(config, module, method, task)
    trainer, checkpoints = build_trainer(config, folder)
    fit(trainer, module, data, folder)

    last = score_last(trainer, module, data)
    last_score = last[config.task.select]
    if data.sample is not None:
        data.sample = None
        last = validate(trainer, module, data)
    selected = restore_best(trainer, module, checkpoints, last_score)
    metrics = last if selected["step"] == trainer.global_step else validate(trainer, module, data)
    ranks = method.ranks()
    shutil.rmtree(folder / "adapter", ignore_errors=True)  # an earlier run's, of another method, would be mixed in
    if module.at_budget:
        pretrained.tokenizer.save_pretrained(folder / "adapter")
        method.export(folder / "adapter", source.recorded, task.peft_task_type)
        write_origin(folder / "adapter", config, source)
    else:
        log.warning("the run ended before its ranks were frozen: it is over budget, and no adapter is written")
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
        components_target=config.budget.target * len(ranks) if ranks and config.budget.unit == "components" else None,
        components_kept=sum(ranks.values()),
        adapter_parameters=method.adapter_parameters(),
        head_parameters=head_parameters,
        model_parameters=model_parameters,
        total_steps=total_steps,
        lr=config.lr,
        epochs=config.epochs,
        batch_size=config.batch_size,
        seconds=round(time.monotonic() - start, 1),
        output_dir=str(folder),
        ranks=ranks,
    )
    history = module.allocation.history if module.allocation else []
    write_results(results, config.budget.initial, history, folder)
    write_artifacts(module, folder)
    finish_trackers(trainer, results)
    print_summary(results)
    return results


def quiet_libraries() -> None:
    """Keep advice that does not fit, and other libraries' deprecations of one another, off the user's screen."""
    for advice in (
        ".*does not have many workers.*",  # batches are collated in a millisecond
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*(Checkpoint|Experiment logs) directory .* exists and is not empty.*",
        ".*will save all targets and predictions.*",
        ".*LeafSpec.*is deprecated.*",
    ):
        warnings.filterwarnings("ignore", advice)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def adapt(pretrained: Pretrained, method: Method[Any], config: TrainConfig) -> nn.Module:
    """Let the method change the model; returns what is trained. Raises `UserError` where they do not fit."""
    targets = resolve_targets(config.model, pretrained.model.config.model_type) if method.takes_targets else []
    try:
        model = method.adapt(pretrained.model, targets, pretrained.head)
    except ValueError as error:
        field = "model.targets" if method.takes_targets else "method.name"
        raise UserError(f"{field}, method={config.method.name}: {error}") from None
    log.info(
        "%s: %d layers of %s adapted, %s parameters train; head: %s",
        *(config.method.name, len(method.ranks()), config.model.path),
        *(f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}", ", ".join(pretrained.head) or "none"),
    )
    return model


def say_plan(config: TrainConfig, module: FineTuning, method: Method[Any], task: Task[Any]) -> None:
    """Print T and the schedule before step 0."""
    rows = ", ".join(f"{len(data):,} {split}" for split, data in task.validation.items())
    log.info(
        "%s: %s rows to train, %s; T = %d steps (%d epochs, batch %d, accumulation %d), lr %.3g",
        *(config.task.name, f"{len(task.train):,}", rows, module.total_steps),
        *(config.epochs, config.batch_size, config.trainer.accumulate, config.lr),
    )
    if module.allocation is None:
        return
    allocator = module.allocation.allocator
    schedule = allocator.schedule
    log.info(
        "budget: %g components a layer until step %d, then down every %d steps to %g at step %d, where ranks freeze "
        "(%s %s; %d components now)",
        *(schedule.init, schedule.start_step, schedule.interval, schedule.target, schedule.freeze_step),
        *(f"{allocator.allowance(schedule.total):,}", config.budget.unit, sum(allocator.sizes)),
    )


def build_trainer(config: TrainConfig, folder: Path) -> tuple[pl.Trainer, ModelCheckpoint]:
    """Lightning's trainer, and the checkpoint callback that selects among epochs at budget."""
    best = ModelCheckpoint(
        folder / "checkpoints", filename="best", monitor=SELECTION, mode="max", enable_version_counter=False
    )
    last = ModelCheckpoint(folder / "checkpoints", filename="last", enable_version_counter=False)
    callbacks: list[Callback] = [best, last]
    if _on_terminal():
        callbacks.append(RichProgressBar(leave=False))
    trainer = pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=config.trainer.precision,  # type: ignore[arg-type]
        max_epochs=config.epochs,
        max_steps=config.trainer.max_steps or -1,
        accumulate_grad_batches=config.trainer.accumulate,
        gradient_clip_val=config.trainer.clip or None,
        val_check_interval=1 / config.trainer.validations_per_epoch,
        log_every_n_steps=config.trainer.log_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(callback, RichProgressBar) for callback in callbacks),
        logger=build_loggers(config, folder),
        callbacks=callbacks,
        default_root_dir=folder,
    )
    return trainer, best


def _on_terminal() -> bool:
    from rich.console import Console

    return Console().is_terminal


def fit(trainer: pl.Trainer, module: FineTuning, data: TaskData, folder: Path) -> None:
    """Train. Raises `UserError` where the loss or a score stops being finite; the last checkpoint stays."""
    try:
        trainer.fit(module, data)
    except NonFiniteError as error:
        last = folder / "checkpoints" / "last.ckpt"
        kept = last if last.is_file() else "none yet"
        raise UserError(
            f"training stopped before the update, at {error}. Lower optimizer.lr = {module.lr:g}, or look at that layer "
            f"and batch. Last good checkpoint: {kept}"
        ) from None


def score_last(trainer: pl.Trainer, module: FineTuning, data: TaskData) -> dict[str, float]:
    """Validation scores of the last step's weights; scored now where max_steps ended the run inside an epoch."""
    if not module.history or module.history[-1]["step"] != trainer.global_step:
        return validate(trainer, module, data)
    return {name: value for name, value in module.history[-1].items() if name not in ("epoch", "step")}


def restore_best(trainer: pl.Trainer, module: FineTuning, checkpoints: ModelCheckpoint, last_score: float) -> dict[str, Any]:
    """Put the best weights at budget back; returns their epoch and step. The last ones stay where none are better."""
    best = checkpoints.best_model_score
    if best is None or float(best) <= (-math.inf if math.isnan(last_score) else last_score):
        return {"epoch": trainer.current_epoch, "step": trainer.global_step}
    checkpoint = torch.load(checkpoints.best_model_path, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    return {"epoch": int(checkpoint["epoch"]) + 1, "step": int(checkpoint["global_step"])}


def validate(trainer: pl.Trainer, module: FineTuning, data: TaskData) -> dict[str, float]:
    """Validation scores of the model as it is."""
    logged = trainer.validate(module, data, verbose=False)
    merged = {name.removeprefix("val/"): value for scores in logged for name, value in scores.items()}
    return {name: value for name, value in merged.items() if name != SELECTION and not name.endswith("loss")}


def finish_trackers(trainer: pl.Trainer, results: Results) -> None:
    """Leave the final numbers in the tracker and close it, so that a sweep's next run opens its own."""
    from lightning.pytorch.loggers import WandbLogger

    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            final = {f"final/{name}": value for name, value in results.metrics.items()}
            final |= {"final/components": results.components_kept, "final/adapter_parameters": results.adapter_parameters}
            logger.experiment.summary.update(final)
            logger.experiment.finish()
        logger.finalize("success")
