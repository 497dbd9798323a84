"""Whether the optimizer took a step: it is none where a loss scaler skips it."""

from __future__ import annotations

import torch
from torch import nn

from dynarank.training.optimizer_steps import OptimizerSteps


def test_a_step_is_known_from_the_update_to_the_next_batch() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    steps = OptimizerSteps()
    steps.attach(optimizer)
    assert not steps.taken
    optimizer.step()
    assert steps.taken
    steps.begin_batch()
    assert not steps.taken
    steps.attach(optimizer)  # again, as in a second fit: one hook only
    assert len(optimizer._optimizer_step_post_hooks) == 1
    steps.detach()
    optimizer.step()
    assert not steps.taken


def test_a_step_that_a_loss_scaler_skips_is_none() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    steps = OptimizerSteps()
    steps.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    for value, taken in ((1.0, True), (torch.inf, False)):
        steps.begin_batch()
        scaler.scale(weight.sum()).backward()
        weight.grad.fill_(value)
        scaler.step(optimizer)
        scaler.update()
        assert steps.taken is taken
