"""The allocator along whole small trainings: counts, the freeze, and resuming from a state."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from dynarank.adapters.inject import adapter_layers, inject, mark_trainable
from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.schedule import BudgetSchedule


class Training:
    """A small regression with two adapted layers; everything in it is deterministic."""

    def __init__(self, regrow: bool = True, optimizer: str = "adamw") -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))
        self.x, self.y = torch.randn(16, 6), torch.randn(16, 4)
        self.layers = inject(self.model, ["0", "2"], r=4)
        mark_trainable(self.model)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                trained, lr=0.02, weight_decay=0.1
            )
        else:
            self.optimizer = torch.optim.SGD(trained, lr=0.02, momentum=0.9, weight_decay=0.1)
        plan = BudgetSchedule(init=4, target=2, total=40, warmup=0.1, final=0.4, interval=3)
        self.ranks = RankAllocator(self.layers, plan, regrow=regrow)

    def step(self) -> bool:
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.model(self.x), self.y).backward()
        self.optimizer.step()
        return self.ranks.step()

    def save(self) -> bytes:
        buffer = io.BytesIO()
        parts = {"model": self.model, "optimizer": self.optimizer, "ranks": self.ranks}
        torch.save({name: part.state_dict() for name, part in parts.items()}, buffer)
        return buffer.getvalue()

    def load(self, saved: bytes) -> None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ranks.load_state_dict(state["ranks"])


def used_components(training: Training) -> list[bool]:
    """Whether each component changes its layer's map, found by taking it away."""
    used: list[bool] = []
    for layer in training.layers.values():
        full = layer.delta_weight()
        for i in range(layer.r):
            kept = layer.lora_c.data[i].clone()
            layer.lora_c.data[i] = 0
            used.append(not torch.equal(layer.delta_weight(), full))
            layer.lora_c.data[i] = kept
    return used


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("regrow", [True, False])
def test_counts_follow_the_schedule_along_a_training(regrow: bool, optimizer: str) -> None:
    training = Training(regrow, optimizer)
    ranks, plan = training.ranks, training.ranks.schedule
    prunings, regrown = [], False
    before = [True] * 8
    for t in range(1, 41):
        pruned = training.step()
        used = used_components(training)
        assert sum(used) == int(ranks.active_count()) == sum(ranks.ranks().values())
        assert ranks.frozen is (t >= 24)
        if pruned:
            prunings.append(t)
            assert sum(used) == plan.keep(t, 2)
        elif t > 24:
            assert used == before
        if t > 1:
            returned = any(now and not then for now, then in zip(used, before, strict=True))
            assert regrow or not returned
            regrown |= returned
        before = used
    assert prunings == [6, 9, 12, 15, 18, 21, 24]
    assert regrown is regrow
    assert sum(before) == 4


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_after_the_freeze_no_optimizer_wakes_a_pruned_component(optimizer: str) -> None:
    training = Training(optimizer=optimizer)
    for _ in range(24):
        training.step()
    frozen = [layer.mask.clone() for layer in training.layers.values()]
    assert sum(int(mask.sum()) for mask in frozen) == 4
    for _ in range(8):
        training.step()
        for layer, mask in zip(training.layers.values(), frozen, strict=True):
            assert torch.equal(layer.mask, mask)
            assert not layer.lora_c.grad[~mask].any()
            kept = sum(
                (
                    layer.lora_c[i] * torch.outer(layer.lora_B[:, i], layer.lora_A[i])
                    for i in mask.nonzero().flatten()
                ),
                torch.zeros(layer.out_features, layer.in_features),
            )
            torch.testing.assert_close(layer.delta_weight(), layer.scaling * kept)
    moved = torch.cat(
        [layer.lora_c[~mask] for layer, mask in zip(training.layers.values(), frozen, strict=True)]
    )
    assert moved.any(), "the optimizer did not even try"


def final_tensors(training: Training) -> dict[str, Tensor]:
    return {**training.model.state_dict(), "ema": training.ranks.ema}


@pytest.mark.parametrize("regrow", [True, False])
@pytest.mark.parametrize("stop", [2, 13, 15, 24, 30])
def test_a_resumed_run_equals_an_uninterrupted_one(stop: int, regrow: bool) -> None:
    whole = Training(regrow)
    for _ in range(40):
        whole.step()
    first, second = Training(regrow), Training(regrow)
    for _ in range(stop):
        first.step()
    second.load(first.save())
    assert (second.ranks.t, second.ranks.frozen) == (stop, stop >= 24)
    for _ in range(40 - stop):
        second.step()
    expected = final_tensors(whole)
    assert all(torch.equal(value, expected[key]) for key, value in final_tensors(second).items())
    assert second.ranks.ranks() == whole.ranks.ranks()


def test_a_saved_state_does_not_change_with_the_run() -> None:
    training = Training()
    for _ in range(5):
        training.step()
    state = training.ranks.state_dict()
    ema = state["ema"].clone()
    training.step()
    assert state["t"] == 5
    assert torch.equal(state["ema"], ema)


def test_takes_what_inject_gives_in_model_order() -> None:
    training = Training()
    assert list(training.ranks.ranks()) == list(adapter_layers(training.model)) == ["0", "2"]
