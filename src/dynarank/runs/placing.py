"""The step of a method that reads the first batches before training, in a new run."""

from __future__ import annotations

import logging
from typing import Any

import torch

from dynarank.config.schema import TrainConfig
from dynarank.errors import UserError
from dynarank.methods.base import Method
from dynarank.tasks.base import Task
from dynarank.training.data import TaskData
from dynarank.training.distributed import this_rank

log = logging.getLogger(__name__)


def prepare_method(
    config: TrainConfig, method: Method[Any], task: Task[Any], data: TaskData
) -> None:
    """Let the method read the first batches, on the device that trains.

    Raises:
        UserError: the method cannot read this model.
    """
    model = method.model
    home = next(model.parameters()).device
    device = home
    if config.trainer.accelerator in ("auto", "gpu") and torch.cuda.is_available():
        # Lightning has given out no devices yet. On several machines, ranks count over all of them.
        device = torch.device("cuda", this_rank() % torch.cuda.device_count())
    inputs = []
    for batch in data.first_batches(method.preparation_batches):
        on_device = {name: value.to(device) for name, value in task.inputs(batch).items()}
        inputs.append(on_device)
    with torch.random.fork_rng():  # what training draws does not depend on the preparation
        torch.manual_seed(config.seed)
        try:
            # A quantized model lies on its device already, and may refuse to be moved at all.
            if device != home:
                model.to(device)
            method.prepare(inputs)
        except ValueError as error:
            raise UserError(f"method.name, method={config.method.name}: {error}") from None
        finally:
            if device != home:
                model.to(home)
    ranks = method.ranks()
    log.info(
        "%s: %d batches read; %d components placed in %d of %d matrices",
        config.method.name,
        len(inputs),
        sum(ranks.values()),
        sum(rank > 0 for rank in ranks.values()),
        len(ranks),
    )
