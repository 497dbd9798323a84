"""Shorter steps before the freeze, against a learning rate that is as much lower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynarank.adapters.inject import inject, mark_trainable
from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.schedule import BudgetSchedule
from dynarank.allocation.shorter_steps import rate_factor

STEPS = 12
Make = Callable[..., torch.optim.Optimizer]


def schedule() -> BudgetSchedule:
    return BudgetSchedule(init=4, target=1, total=STEPS, interval=2)


class Setting:
    """A small model with a head beside its adapters, and batches."""

    def __init__(self, start: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        self.layers = inject(self.model, ["0"], r=4, start=start)
        mark_trainable(self.model, head=["2"])
        self.head = list(self.model[2].parameters())
        self.adapter = [
            parameter for parameter in self.model[0].parameters() if parameter.requires_grad
        ]
        self.allocator = RankAllocator(self.layers, schedule())

    def train(self, optimizer: torch.optim.Optimizer, before: Callable[[int], None]) -> None:
        generator = torch.Generator().manual_seed(1)
        for step in range(STEPS):
            before(step)
            x = torch.randn(7, 6, generator=generator)
            self.model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def state(self) -> dict[str, Tensor]:
        return self.model.state_dict()


@pytest.mark.parametrize("start", ["paper", "lora", "orthogonal_A"])
@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1),
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    ],
)
def test_it_is_a_lower_learning_rate_of_the_adapters_alone(make: Make, start: str) -> None:
    power = 0.5
    shortened = Setting(start)
    optimizer = make([*shortened.adapter, *shortened.head])
    shortened.allocator.attach(optimizer, rate_power=power)
    shortened.train(optimizer, before=lambda step: None)

    slower = Setting(start)
    groups = [{"params": slower.adapter}, {"params": slower.head}]
    optimizer = make(groups)
    slower.allocator.attach(optimizer)
    budgets = [schedule().budget(step) for step in range(STEPS)]

    def lower_rate(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.05 * (1 / budgets[step]) ** power

    slower.train(optimizer, before=lower_rate)
    assert budgets[0] == 4  # so that the rate is halved
    assert budgets[-1] == 1  # and then is not
    expected = slower.state()
    for name, value in shortened.state().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    unchanged = Setting(start).state()
    assert not torch.equal(unchanged["0.lora_B"], expected["0.lora_B"])


def test_a_step_that_a_scaler_skips_stays_none() -> None:
    setting = Setting("lora")
    optimizer = torch.optim.SGD(setting.adapter, lr=0.1)
    setting.allocator.attach(optimizer, rate_power=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = {name: value.clone() for name, value in setting.state().items()}
    scaler.scale(setting.model(torch.ones(1, 6)).sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert setting.allocator.t == 0
    for name, value in setting.state().items():
        assert torch.equal(value, before[name])


def test_no_copy_is_held_between_steps() -> None:
    setting = Setting("lora")
    optimizer = torch.optim.SGD(setting.adapter, lr=0.1)
    attachment = setting.allocator.attach(optimizer, rate_power=0.5)
    setting.train(optimizer, before=lambda step: None)
    assert attachment._shorter_steps._copies == []


def test_the_factor_is_of_the_budget_then() -> None:
    falling = BudgetSchedule(init=4, target=1, total=100, shape="linear")  # from 15 to 50
    assert rate_factor(falling, 0, power=0.5) == 0.5
    assert rate_factor(falling, 0, power=0) == 1
    assert rate_factor(falling, 99, power=0.5) == 1
    middle = falling.budget(32)
    assert 1 < middle < 4
    assert rate_factor(falling, 32, power=1) == pytest.approx(1 / middle)


def test_a_target_of_zero_ends_at_the_full_rate() -> None:
    to_nothing = BudgetSchedule(init=4, target=0, total=100)
    assert rate_factor(to_nothing, 0, power=0.5) == 0
    assert rate_factor(to_nothing, 99, power=0.5) == 1


@pytest.mark.parametrize("power", [-0.1, 1.5, float("nan")])
def test_a_power_outside_its_range_is_refused(power: Any) -> None:
    setting = Setting("lora")
    optimizer = torch.optim.SGD(setting.adapter, lr=0.1)
    with pytest.raises(ValueError, match=r"rate_power = .*between 0 .off. and 1"):
        setting.allocator.attach(optimizer, rate_power=power)
    optimizer.step()
    assert setting.allocator.t == 0  # no hook was left behind
