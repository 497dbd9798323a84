"""The callback counts real optimizer steps, whatever the loop around it does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dynarank import BudgetSchedule, RankAllocator, inject
from dynarank.training.nonfinite import NonFiniteError, first_nonfinite
from dynarank.training.optimizer_steps import OptimizerSteps
from dynarank.training.rank_allocation import RankAllocation


class Setting:
    """A layer, its allocation and an optimizer, driven by hand as a trainer would."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 4))
        layers = inject(self.model, ["0"], r=3)
        self.steps = OptimizerSteps()
        self.callback = RankAllocation(
            RankAllocator(layers, BudgetSchedule(3, 1, total=8, interval=1)), self.steps
        )
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trainable, lr=0.1)
        self.logging: Any = SimpleNamespace(should_update_logs=True)
        self.trainer: Any = SimpleNamespace(
            world_size=1,
            optimizers=[self.optimizer],
            loggers=[],
            callbacks=[],
            strategy=None,
            is_last_batch=False,
            global_step=8,  # of a run that took all of its steps
            state=SimpleNamespace(fn="fit"),
            _logger_connector=self.logging,
        )
        self.logged: dict[str, Any] = {}
        self.module: Any = self.model
        self.module.log, self.module.log_dict = self.log, self.logged.update
        self.steps.attach(self.optimizer)
        self.callback.on_train_start(self.trainer, self.module)

    def log(self, name: str, value: Any, **options: Any) -> None:
        self.logged[name] = value

    def backward(self) -> None:
        self.model(torch.ones(2, 4)).square().sum().backward()

    def batch_ends(self) -> None:
        self.callback.on_train_batch_end(self.trainer, self.module, None, None, 0)
        self.steps.begin_batch()


def test_batches_that_only_accumulate_do_not_count() -> None:
    setting = Setting()
    for batch in range(6):
        setting.backward()
        if batch % 3 == 2:
            setting.optimizer.step()
        setting.batch_ends()
    assert setting.callback.allocator.t == 2


def test_steps_that_a_loss_scaler_skips_do_not_count() -> None:
    setting = Setting()
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    taken = 0
    for batch in range(5):
        setting.optimizer.zero_grad()
        scaler.scale(setting.model(torch.ones(2, 4)).square().sum()).backward()
        if batch in (1, 3):
            setting.callback.allocator.layers[0].lora_c.grad.fill_(torch.inf)
        else:
            taken += 1
        scaler.step(setting.optimizer)
        scaler.update()
        setting.batch_ends()
    assert setting.callback.allocator.t == taken == 3


def test_a_step_is_acted_on_before_the_next_and_logged() -> None:
    setting = Setting()
    for _ in range(4):
        setting.backward()
        setting.optimizer.step()
        setting.batch_ends()
    allocator = setting.callback.allocator
    assert allocator.frozen
    assert setting.model[0].lora_A.shape == (1, 4)
    assert int(setting.logged["budget/nonzero"]) == 1 == sum(allocator.ranks().values())
    assert setting.logged["budget/scheduled"] == 1
    assert {"score/q05", "score/q50", "score/q95"} <= set(setting.logged)
    assert setting.callback.history[-1] == {"step": 4, "ranks": allocator.ranks()}


def test_between_the_logged_steps_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither figures nor ranks are read from the device where nobody wants them."""
    setting = Setting()
    setting.logging.should_update_logs = False
    setting.callback.allocator.schedule = BudgetSchedule(3, 1, total=80, interval=100)
    for name in ("ranks", "active_count"):
        monkeypatch.setattr(RankAllocator, name, lambda self: pytest.fail("read for nothing"))
    setting.backward()
    setting.optimizer.step()
    setting.batch_ends()
    setting.callback.on_validation_end(setting.trainer, setting.module)
    assert setting.logged == {}
    assert setting.callback.allocator.t == 1


def test_hooks_go_with_the_training() -> None:
    setting = Setting()
    setting.steps.detach()
    setting.backward()
    setting.optimizer.step()
    setting.batch_ends()
    assert setting.callback.allocator.t == 0


def test_a_score_that_is_not_finite_stops_the_run() -> None:
    setting = Setting()
    setting.optimizer.step()
    setting.callback.allocator.layers[0].lora_A.data[0, 0] = torch.nan
    setting.callback.allocator.layers[0].lora_c.data.fill_(1.0)
    setting.optimizer.step()
    with pytest.raises(NonFiniteError, match=r"step 1.*component of 0 is not finite"):
        setting.batch_ends()


def test_the_state_goes_round() -> None:
    setting, other = Setting(), Setting()
    for _ in range(3):
        setting.backward()
        setting.optimizer.step()
        setting.batch_ends()
    other.callback.load_state_dict(setting.callback.state_dict())
    assert other.callback.allocator.t == 3
    assert torch.equal(other.callback.allocator.ema, setting.callback.allocator.ema)
    assert other.callback.history == setting.callback.history


class Divides(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 0


def test_the_first_module_that_is_not_finite_is_found() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.broken, self.after = nn.Linear(2, 2), Divides(), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.after(self.broken(self.fine(x)))

    net = Net()
    assert first_nonfinite(net, {"x": torch.ones(1, 2)}) == "broken (Divides)"
    assert first_nonfinite(net, {"x": torch.tensor([[torch.nan, 0]])}) == "the batch's x"
    net.after.weight.data[0, 0] = torch.inf
    assert first_nonfinite(net, {"x": torch.ones(1, 2)}) == "parameter after.weight"
