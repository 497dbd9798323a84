"""AdamW with linear warm-up and linear decay, as in the paper's runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from dynarank.config.schema import OptimizerConfig

Ratios = Sequence[tuple[Sequence[nn.Parameter], float]]
"""Parameters whose learning rate is a multiple of the run's, and that multiple."""


def parameter_groups(
    model: nn.Module, weight_decay: float, lr: float = 0.0, ratios: Ratios = ()
) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups, as an optimizer takes them.

    The first group holds the matrices, which decay. The second holds the vectors (c, biases,
    norms), which do not. Those named in `ratios` stand in groups of their own behind them, at a
    multiple of `lr`.
    """
    # By identity, because == compares tensors element by element.
    apart: set[int] = set()
    for parameters, _ in ratios:
        apart.update(id(parameter) for parameter in parameters)
    trainable = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    matrices = [p for p in trainable if p.ndim > 1]
    vectors = [p for p in trainable if p.ndim <= 1]
    # Both stand even where they are empty: the first group's rate is the one that is logged.
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    for parameters, ratio in ratios:
        for decay, members in (
            (weight_decay, [p for p in parameters if p.ndim > 1]),
            (0.0, [p for p in parameters if p.ndim <= 1]),
        ):
            if members:
                # Of a run that goes on after its cut, layers of rank 0 do not train.
                # The group stays even where none is left, as in the checkpoint.
                trained = [parameter for parameter in members if parameter.requires_grad]
                groups.append({"params": trained, "weight_decay": decay, "lr": ratio * lr})
    return groups


def build_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    lr: float,
    total_steps: int,
    ratios: Ratios = (),
    fused: bool = False,
    factor: Callable[[int], float] | None = None,
    steady: Sequence[nn.Parameter] = (),
) -> dict[str, Any]:
    """Return the optimizer and its schedule in the form that `configure_optimizers` returns.

    Args:
        model: whose trainable parameters are optimized.
        config: the optimizer's settings.
        lr: the learning rate after the warm-up.
        total_steps: how many optimizer steps the schedule spans.
        ratios: parameters with a multiple of `lr`.
        fused: update all parameters in one kernel, where torch has one for their device. It is not
            for a loss scaler: a fused optimizer skips a step on the device, where nobody sees it.
        factor: multiplies the scheduled rate after t optimizer steps; None for no factor.
        steady: parameters that `factor` is not for; all or none of a group of rates.
    """
    from transformers import get_linear_schedule_with_warmup

    groups = parameter_groups(model, config.weight_decay, lr, ratios)
    betas = (config.beta1, config.beta2)
    adamw = _fused_adamw if fused else torch.optim.AdamW
    optimizer = adamw(groups, lr=lr, betas=betas)
    warmup = int(config.warmup * total_steps)
    scheduler = get_linear_schedule_with_warmup(optimizer, warmup, total_steps)
    if factor is not None:
        scheduler = LambdaLR(optimizer, _with_factor(optimizer, scheduler, factor, steady))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def optimizer_as_set(checkpoint: dict[str, Any], built: dict[str, Any]) -> None:
    """Put the settings of a run into the optimizer's part of a checkpoint that it goes on from.

    torch keeps rates, decays and the choice of kernel beside the moments, and would restore those
    of the run's beginning where `resume.allow_inexact` let others pass. Equal settings leave every
    bit as it is.

    Args:
        checkpoint: whose groups, and rates of the schedule, are changed in place.
        built: what `build_optimizer` returned for the run at hand.
    """
    groups = built["optimizer"].param_groups
    schedule, saved_schedule = built["lr_scheduler"]["scheduler"], checkpoint["lr_schedulers"][0]
    # torch counts a schedule's steps as epochs.
    taken, rates = saved_schedule["last_epoch"], []
    saved_groups = checkpoint["optimizer_states"][0]["param_groups"]
    for group, saved, linear in zip(groups, saved_groups, schedule.lr_lambdas, strict=True):
        saved["weight_decay"] = group["weight_decay"]
        saved["betas"] = group["betas"]
        # A loss scaler, which another precision may have brought, is not for a fused optimizer.
        saved["fused"] = group["fused"]
        saved["initial_lr"] = group["initial_lr"]
        saved["lr"] = group["initial_lr"] * linear(taken)
        rates.append(saved["lr"])
    saved_schedule["base_lrs"] = list(schedule.base_lrs)
    saved_schedule["_last_lr"] = rates


def _with_factor(
    optimizer: torch.optim.Optimizer,
    scheduler: LambdaLR,
    factor: Callable[[int], float],
    steady: Sequence[nn.Parameter],
) -> list[Callable[[int], float]]:
    """Return the schedule of each group, multiplied where the group is not a steady one."""
    exempt = {id(parameter) for parameter in steady}
    schedules: list[Callable[[int], float]] = []
    for group, linear in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        members = {id(parameter) for parameter in group["params"]}
        if members & exempt:
            assert members <= exempt
            schedules.append(linear)
        else:
            # Not a lambda, which would look `linear` up later, and find the last group's.
            schedules.append(partial(_product, linear, factor))
        group["lr"] = group["initial_lr"]  # the first schedule has scaled it already
    return schedules


def _product(linear: Callable[[int], float], factor: Callable[[int], float], step: int) -> float:
    return linear(step) * factor(step)


def _fused_adamw(
    groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """Return AdamW in one kernel, or in torch's default form where there is no such kernel."""
    try:
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    except RuntimeError:  # torch's answer to parameters that the kernel does not take
        return torch.optim.AdamW(groups, lr=lr, betas=betas)


def resolve_total_steps(
    batches_per_epoch: int, epochs: int, accumulate: int, max_steps: int | None
) -> int:
    """Return T, the optimizer steps of the run.

    An epoch's last accumulation window is a step of its own, also where it is shorter.
    """
    assert batches_per_epoch > 0
    steps_per_epoch = -(-batches_per_epoch // accumulate)  # rounded up
    steps = epochs * steps_per_epoch
    return steps if max_steps is None else min(steps, max_steps)


def clip_gradient(optimizer: Any, largest: float | None) -> Tensor:
    """Return the norm of the gradient of all that an optimizer trains, a scalar, before clipping.

    Args:
        optimizer: whose parameters are meant.
        largest: the gradient is scaled down to that norm where it is larger; None: it stays.
    """
    trained: list[nn.Parameter] = []
    for group in optimizer.param_groups:
        trained.extend(group["params"])
    if largest is not None:
        # A norm that is not finite spoils every gradient. What follows then stops the run, or skips
        # the step.
        return torch.nn.utils.clip_grad_norm_(trained, largest)
    # The norm is wanted without clipping too: it tells whether the gradient is finite.
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)
