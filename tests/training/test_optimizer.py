from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from dynarank import inject, mark_trainable
from dynarank.config.schema import OptimizerConfig
from dynarank.training.optimizer import (
    build_optimizer,
    optimizer_as_set,
    parameter_groups,
    resolve_total_steps,
)


@pytest.fixture
def model() -> nn.Module:
    net = nn.ModuleDict({"body": nn.Linear(6, 6), "head": nn.Linear(6, 2)})
    inject(net, ["body"], r=3)
    mark_trainable(net, ["head"])
    return net


def test_c_and_biases_do_not_decay_and_the_base_is_in_no_group(model: nn.Module) -> None:
    decayed, plain = parameter_groups(model, 0.01)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        "body.lora_A",
        "body.lora_B",
        "head.weight",
    }
    assert {names[id(p)] for p in plain["params"]} == {"body.lora_c", "head.bias"}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)


def test_rate_rises_over_the_warmup_and_ends_at_zero(model: nn.Module) -> None:
    built = build_optimizer(model, OptimizerConfig(warmup=0.1), lr=1.0, total_steps=100)
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(100):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:11] == pytest.approx([i / 10 for i in range(11)])
    assert rates[55] == pytest.approx(0.5)
    assert scheduler.get_last_lr()[0] == 0.0


@pytest.mark.parametrize(
    ("batches", "epochs", "accumulate", "max_steps", "total"),
    [
        (10, 3, 1, None, 30),
        (10, 3, 4, None, 9),
        (10, 3, 4, 5, 5),
        (10, 3, 1, 100, 30),
        (1, 1, 8, None, 1),
    ],
)
def test_total_steps(
    batches: int, epochs: int, accumulate: int, max_steps: int | None, total: int
) -> None:
    assert resolve_total_steps(batches, epochs, accumulate, max_steps) == total


def test_build_optimizer_trains_only_what_requires_gradients(model: nn.Module) -> None:
    optimizer = build_optimizer(model, OptimizerConfig(), lr=0.1, total_steps=10)["optimizer"]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == 6 * 3 * 2 + 3 + 14


def test_the_fused_kernel_takes_the_same_steps() -> None:
    """Within rounding, and from a saved state on to the bit."""
    config = OptimizerConfig(weight_decay=0.01)
    ends = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
        optimizer = build_optimizer(model, config, 0.01, 20, fused=fused)["optimizer"]
        assert bool(optimizer.param_groups[0]["fused"]) is fused
        for step in range(8):
            if step == 4 and fused:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = build_optimizer(model, config, 0.01, 20, fused=True)["optimizer"]
                optimizer.load_state_dict(state)
            train_once(model, optimizer, step)
        ends.append([parameter.detach().clone() for parameter in model.parameters()])
        if fused:
            torch.manual_seed(0)
            whole = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
            optimizer = build_optimizer(whole, config, 0.01, 20, fused=True)["optimizer"]
            for step in range(8):
                train_once(whole, optimizer, step)
            for resumed, parameter in zip(ends[-1], whole.parameters(), strict=True):
                assert torch.equal(resumed, parameter)
    for plain, fast in zip(*ends, strict=True):
        assert torch.allclose(plain, fast, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_the_smoothing_is_as_set_and_stays_so_when_a_run_goes_on(
    model: nn.Module, fused: bool
) -> None:
    config = OptimizerConfig(beta1=0.8, beta2=0.95, warmup=0)
    built = build_optimizer(model, config, lr=1.0, total_steps=10, fused=fused)
    optimizer, weight = built["optimizer"], model["head"].weight
    squares = torch.zeros_like(weight)
    for step in range(3):
        weight.grad = torch.full_like(weight, step + 1.0)
        optimizer.step()
        squares = 0.95 * squares + 0.05 * weight.grad.square()
    assert torch.allclose(optimizer.state[weight]["exp_avg_sq"], squares)

    checkpoint = {
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [built["lr_scheduler"]["scheduler"].state_dict()],
    }
    other = build_optimizer(model, OptimizerConfig(), lr=1.0, total_steps=10, fused=fused)
    optimizer_as_set(checkpoint, other)
    other["optimizer"].load_state_dict(checkpoint["optimizer_states"][0])
    assert [group["betas"] for group in other["optimizer"].param_groups] == [(0.9, 0.999)] * 2


def train_once(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    optimizer.zero_grad()
    model(torch.randn(4, 7, generator=generator)).square().sum().backward()
    optimizer.step()


def test_what_the_kernel_does_not_take_is_optimized_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = torch.optim.AdamW

    def without_kernel(*arguments: Any, fused: bool = False, **named: Any) -> torch.optim.AdamW:
        if fused:
            raise RuntimeError("`fused=True` requires all the params to be floating point")
        return plain(*arguments, **named)

    monkeypatch.setattr(torch.optim, "AdamW", without_kernel)
    built = build_optimizer(nn.Linear(2, 2), OptimizerConfig(), 0.01, 20, fused=True)
    assert not built["optimizer"].param_groups[0]["fused"]


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_that_goes_on_keeps_the_kernel_that_its_own_run_chose(
    model: nn.Module, fused: bool
) -> None:
    def build(fused: bool) -> dict[str, Any]:
        return build_optimizer(model, OptimizerConfig(), lr=1.0, total_steps=10, fused=fused)

    before, after = build(not fused), build(fused)
    checkpoint = {
        "optimizer_states": [before["optimizer"].state_dict()],
        "lr_schedulers": [before["lr_scheduler"]["scheduler"].state_dict()],
    }
    optimizer_as_set(checkpoint, after)
    after["optimizer"].load_state_dict(checkpoint["optimizer_states"][0])
    assert [bool(group["fused"]) for group in after["optimizer"].param_groups] == [fused] * 2
