"""Everything of a run that comes before its first step: what is located, read, loaded and adapted.

Each step takes what the step before it returns, the cheapest first, so that none can be left out
and a mistake costs as little time as it can. Wherever something becomes known that tells runs
apart, it is compared with the checkpoint that the run goes on from (`IdentityCheck`): the settings,
the rows, the base model's weights, and T.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from dynarank.checkpoints.identity import IdentityCheck, rows_digest
from dynarank.checkpoints.resume import Resumption, find_resumption
from dynarank.checkpoints.signals import prepare_worker
from dynarank.config.schema import TrainConfig
from dynarank.errors import UserError
from dynarank.methods import build_method
from dynarank.methods.base import Method
from dynarank.pretrained.digests import weights_digest
from dynarank.pretrained.hub import Source
from dynarank.pretrained.models import (
    Pretrained,
    check_fit,
    check_length,
    load_pretrained,
    resolve_targets,
)
from dynarank.pretrained.processors import PROCESSORS
from dynarank.runs.placing import prepare_method
from dynarank.runs.plan import log_plan
from dynarank.runs.preflight import (
    check_compiler,
    check_machine,
    locate_model,
    warn_of_unused,
)
from dynarank.tasks import build_task
from dynarank.tasks.base import Task
from dynarank.training.data import TaskData
from dynarank.training.distributed import check_devices, this_rank
from dynarank.training.module import FineTuning
from dynarank.training.optimizer import resolve_total_steps
from dynarank.training.own_callbacks import build_callbacks
from dynarank.training.tensorboard_tracker import check_tensorboard

log = logging.getLogger(__name__)


@dataclass
class Located:
    """A run whose settings fit the machine, and whose model and data are somewhere."""

    source: Source
    """Of the base model."""
    resumption: Resumption | None
    """The checkpoint that the run goes on from; None for a new run."""
    check: IdentityCheck


@dataclass
class TaskRead:
    """A run whose rows are read. The generators are seeded from here on."""

    located: Located
    task: Task[Any]


@dataclass
class ModelLoaded:
    """A run whose base model is loaded, and whose rows are encoded for it."""

    read: TaskRead
    pretrained: Pretrained
    method: Method[Any]
    model_parameters: int
    """Of the base model and the task's head."""
    head_parameters: int


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
    """Of the base model and the task's head."""
    head_parameters: int
    identity: dict[str, Any]
    resumption: Resumption | None


def prepare(config: TrainConfig, folder: Path) -> Prepared:
    """Check, read, load and adapt.

    Raises:
        UserError: anything that the user can mend.
    """
    located = locate_run(config, folder)
    read = read_task(config, located)
    loaded = load_model(config, read)
    return build_training(config, loaded)


def locate_run(config: TrainConfig, folder: Path) -> Located:
    """Check the machine, and find the model, the data and the checkpoint to go on from."""
    check_machine(config.trainer)
    check_compiler(config.trainer)
    check_devices(config.trainer, config.batch_size)
    build_callbacks(config.trainer.callbacks)  # a mistake in one need not wait for the model
    if config.logger.tracker == "tensorboard":
        check_tensorboard()
    if config.trainer.strategy == "fsdp" and config.method.name == "full":
        raise UserError(
            "trainer.strategy = fsdp shards what is frozen, and with method=full nothing is. "
            "Use ddp"
        )
    warn_of_unused(config, folder)
    source = locate_model(config)
    resumption = find_resumption(config.resume.path, folder)
    return Located(source=source, resumption=resumption, check=IdentityCheck(config, resumption))


def read_task(config: TrainConfig, located: Located) -> TaskRead:
    """Seed the generators and read the rows."""
    pl.seed_everything(config.seed, workers=True, verbose=False)
    task = build_task(config.task)
    check_fit(config.model, located.source, task)
    task.read(config.hub, config.seed)
    located.check.add(data=rows_digest({"train": task.train, **task.validation}))
    return TaskRead(located=located, task=task)


def load_model(config: TrainConfig, read: TaskRead) -> ModelLoaded:
    """Load what reads the inputs and the model, and encode the rows for them."""
    source, task = read.located.source, read.task
    tokenizer = PROCESSORS[task.processor].load(config.model, source)
    pretrained = load_pretrained(config.model, source, task, tokenizer)
    model = pretrained.model
    # Before the method changes the model, and before the rows are encoded, which takes time.
    read.located.check.add(base_weights=weights_digest(model, pretrained.head))
    head_parameters = 0
    for name in pretrained.head:
        head_parameters += _count_parameters(model.get_submodule(name))
    method = build_method(config.method, config.budget, config.dem)
    task.encode(tokenizer, model)
    return ModelLoaded(
        read=read,
        pretrained=pretrained,
        method=method,
        model_parameters=_count_parameters(model),
        head_parameters=head_parameters,
    )


def build_training(config: TrainConfig, loaded: ModelLoaded) -> Prepared:
    """Adapt the model, and build what trains it."""
    pretrained, method = loaded.pretrained, loaded.method
    located, task = loaded.read.located, loaded.read.task
    if config.trainer.gradient_checkpointing:
        checkpoint_activations(pretrained.model, config)
    model = adapt(pretrained, method, config)
    data = _build_data(config, loaded)
    check_shares(task, config.trainer.world_size)
    check_lengths(model, data, task)
    # A resumed run takes what was placed from its checkpoint.
    if located.resumption is None and method.preparation_batches:
        prepare_method(config, method, task, data)
    # Not before: the batches of an epoch follow from the encoded rows and the devices.
    total_steps = resolve_total_steps(
        data.batches_per_epoch, config.epochs, config.trainer.accumulate, config.trainer.max_steps
    )
    located.check.add(total_steps=total_steps)
    try:
        module = FineTuning(
            model, task, method, config.optimizer, config.lr, total_steps, config.trainer.ema
        )
    except ValueError as error:  # the method's, of its budget over these steps
        raise UserError(f"method={config.method.name}: {error}") from None
    if config.trainer.compile:
        module.compile_training_pass()
    log_plan(config, module, task, data.batches_per_epoch)
    if this_rank():
        # The ranks share the weights, not the dropout.
        torch.manual_seed(config.seed + this_rank())
    return Prepared(
        source=located.source,
        task=task,
        pretrained=pretrained,
        method=method,
        module=module,
        data=data,
        model_parameters=loaded.model_parameters,
        head_parameters=loaded.head_parameters,
        identity=located.check.identity,
        resumption=located.resumption,
    )


def _build_data(config: TrainConfig, loaded: ModelLoaded) -> TaskData:
    return TaskData(
        loaded.read.task,
        loaded.pretrained.tokenizer,
        config.batch_size,
        config.seed,
        workers=config.trainer.workers,
        world_size=config.trainer.world_size,
        worker_init=prepare_worker,
    )


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def checkpoint_activations(model: Any, config: TrainConfig) -> None:
    """Let transformers keep a layer's input alone, and compute its activations again.

    Raises:
        UserError: transformers cannot for this architecture.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(
            "trainer.gradient_checkpointing = true: transformers cannot for "
            f"{config.model.path}. Use false"
        )
    # The second name is the older one.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    # What the reentrant kind needs, which loses the gradient behind frozen embeddings.
    model.disable_input_require_grads()
    # The cache of keys and values in training; generation has a setting of its own.
    model.config.use_cache = False


def check_shares(task: Task[Any], world: int) -> None:
    """Raise `UserError` where a split has fewer features than there are devices."""
    splits = {"train": task.train_features, **task.validation_features, **task.test_features}
    for split, features in splits.items():
        if len(features) < world:
            raise UserError(
                f"{split} has {len(features)} rows for {world} devices. Use fewer: trainer.devices"
            )


def check_lengths(model: nn.Module, data: TaskData, task: Task[Any]) -> None:
    """Raise `UserError` where a text, read or generated, is longer than the model takes."""
    if task.length_setting is not None:
        check_length(model, data.longest, task.length_setting)
    for setting, tokens in task.generated_lengths().items():
        check_length(model, tokens, setting, generated=True)


def adapt(pretrained: Pretrained, method: Method[Any], config: TrainConfig) -> nn.Module:
    """Let the method change the model; return what is trained.

    Raises:
        UserError: the targets or the method do not fit the model.
    """
    targets: list[str] = []
    if method.takes_targets:
        targets = resolve_targets(config.model, pretrained.model.config.model_type)
    try:
        model = method.adapt(pretrained.model, targets, pretrained.head)
    except ValueError as error:
        field = "model.targets" if method.takes_targets else "method.name"
        raise UserError(f"{field}, method={config.method.name}: {error}") from None
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    log.info(
        "%s: %d layers of %s adapted, %s parameters train; head: %s",
        config.method.name,
        len(method.ranks()),
        config.model.path,
        f"{trained:,}",
        ", ".join(pretrained.head) or "none",
    )
    return model
