"""Everything of a run that comes before its first step: what is read, loaded, adapted, and checked on the way."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from dynarank.checkpoints.resume import (
    Resumption,
    check_identity,
    find_resumption,
    identity,
    rows_digest,
    weights_digest,
)
from dynarank.checkpoints.signals import leave_signals_to_training
from dynarank.config.schema import TrainConfig
from dynarank.errors import UserError
from dynarank.methods import build_method
from dynarank.methods.base import Method
from dynarank.pretrained.hub import Source
from dynarank.pretrained.models import (
    Pretrained,
    check_fit,
    check_length,
    load_pretrained,
    load_tokenizer,
    resolve_targets,
)
from dynarank.runs.preflight import check_compiler, check_machine, locate_model
from dynarank.tasks import build_task
from dynarank.tasks.base import Task
from dynarank.training.data import TaskData
from dynarank.training.distributed import check_devices, this_rank
from dynarank.training.module import FineTuning
from dynarank.training.optimizer import resolve_total_steps

log = logging.getLogger(__name__)


@dataclass
class Prepared:
    """A run that can start."""

    source: Source
    task: Task[Any]
    pretrained: Pretrained
    method: Method[Any]
    module: FineTuning
    data: TaskData
    model_parameters: int
    head_parameters: int
    identity: dict[str, Any]
    resumption: Resumption | None


def prepare(config: TrainConfig, folder: Path) -> Prepared:
    """Check, read, load and adapt, the cheapest checks first.

    Raises:
        UserError: anything that the user can mend.
    """
    check_machine(config.trainer)
    check_compiler(config.trainer)
    check_devices(config.trainer, config.batch_size)
    if config.trainer.strategy == "fsdp" and config.method.name == "full":
        raise UserError(
            "trainer.strategy = fsdp shards what is frozen, and with method=full nothing is. Use ddp"
        )
    source = locate_model(config)
    resumption = find_resumption(config.resume.path, folder)
    same_run(resumption, config)
    pl.seed_everything(config.seed, workers=True, verbose=False)

    task = build_task(config.task)
    check_fit(config.model, source, task)
    task.read(config.hub, config.seed)
    found: dict[str, Any] = {"data": rows_digest({"train": task.train, **task.validation})}
    same_run(resumption, config, **found)
    tokenizer = load_tokenizer(config.model, source)
    pretrained = load_pretrained(config.model, source, task, tokenizer)
    found["base_weights"] = weights_digest(pretrained.model, pretrained.head)
    model_parameters = sum(parameter.numel() for parameter in pretrained.model.parameters())
    head_parameters = sum(
        p.numel()
        for name in pretrained.head
        for p in pretrained.model.get_submodule(name).parameters()
    )
    method = build_method(config.method, config.budget, config.dem)
    task.encode(tokenizer, pretrained.model)
    if config.trainer.gradient_checkpointing:
        checkpoint_activations(pretrained.model, config)
    model = adapt(pretrained, method, config)

    world = config.trainer.world_size
    data = TaskData(
        task,
        tokenizer,
        config.batch_size,
        config.seed,
        workers=config.trainer.workers,
        world_size=world,
        worker_init=leave_signals_to_training,
    )
    check_shares(task, world)
    check_length(model, data.longest, task.length_setting)
    for setting, tokens in task.generated_lengths().items():
        check_length(model, tokens, setting, generated=True)
    total_steps = resolve_total_steps(
        data.batches_per_epoch, config.epochs, config.trainer.accumulate, config.trainer.max_steps
    )
    found["total_steps"] = total_steps
    same_run(resumption, config, **found)
    module = FineTuning(
        model, task, method, config.optimizer, config.lr, total_steps, config.trainer.ema
    )
    if config.trainer.compile:
        module.compile_training_pass()
    say_plan(config, module, method, task)
    if this_rank():
        torch.manual_seed(config.seed + this_rank())  # ranks share the weights, not the dropout
    return Prepared(
        *(source, task, pretrained, method, module, data, model_parameters, head_parameters),
        *(identity(config, **found), resumption),
    )


def checkpoint_activations(model: Any, config: TrainConfig) -> None:
    """Let transformers keep a layer's input alone. Raises `UserError` where it cannot for this architecture."""
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"trainer.gradient_checkpointing = true: transformers cannot for {config.model.path}. Use false"
        )
    enable = getattr(
        model, "activation_checkpointing_enable", model.gradient_checkpointing_enable
    )  # its older name
    enable({"use_reentrant": False})
    model.disable_input_require_grads()  # for the reentrant kind, which loses the gradient behind frozen embeddings
    model.config.use_cache = (
        False  # of keys and values, in training; generation has its own setting
    )


def check_shares(task: Task[Any], world: int) -> None:
    """Raise `UserError` where a split has fewer features than there are devices."""
    for split, features in {"train": task.train_features, **task.validation_features}.items():
        if len(features) < world:
            raise UserError(
                f"{split} has {len(features)} rows for {world} devices. Use fewer: trainer.devices"
            )


def same_run(resumption: Resumption | None, config: TrainConfig, **found: Any) -> None:
    """Raise `UserError` where the checkpoint is of another run, as far as is known by now."""
    if resumption is not None:
        check_identity(resumption, identity(config, **found), config.resume.allow_inexact)


def adapt(pretrained: Pretrained, method: Method[Any], config: TrainConfig) -> nn.Module:
    """Let the method change the model; returns what is trained. Raises `UserError` where they do not fit."""
    targets = (
        resolve_targets(config.model, pretrained.model.config.model_type)
        if method.takes_targets
        else []
    )
    try:
        model = method.adapt(pretrained.model, targets, pretrained.head)
    except ValueError as error:
        field = "model.targets" if method.takes_targets else "method.name"
        raise UserError(f"{field}, method={config.method.name}: {error}") from None
    log.info(
        "%s: %d layers of %s adapted, %s parameters train; head: %s",
        *(config.method.name, len(method.ranks()), config.model.path),
        *(
            f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}",
            ", ".join(pretrained.head) or "none",
        ),
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
        *(
            schedule.init,
            schedule.start_step,
            schedule.interval,
            schedule.target,
            schedule.freeze_step,
        ),
        *(f"{allocator.allowance(schedule.total):,}", config.budget.unit, sum(allocator.sizes)),
    )
