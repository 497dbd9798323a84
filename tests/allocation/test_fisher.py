"""The Fisher score against autograd, and the controls against brute force."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from dynarank import BudgetSchedule, RankAllocator, inject
from dynarank.allocation.controls import random_scores, scores_for_ranks, shuffle_ranks
from dynarank.allocation.fisher import coefficient_effect


def model_with_layers(train_c: bool) -> tuple[nn.Module, dict]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    layers = inject(model, ["0", "2"], r=2, start="lora")
    for layer in layers.values():
        nn.init.normal_(layer.lora_B)
        nn.init.normal_(layer.lora_c)
        layer.lora_c.requires_grad_(train_c)
    return model, layers


def loss_of(model: nn.Module) -> torch.Tensor:
    x = torch.linspace(-1, 1, 20).view(4, 5)
    return model(x).square().mean()


@pytest.mark.parametrize("train_c", [True, False])
def test_the_effect_of_a_coefficient_is_autograds(train_c: bool) -> None:
    model, layers = model_with_layers(train_c)
    loss_of(model).backward()
    effects = torch.cat([coefficient_effect(layer) for layer in layers.values()])
    model, layers = model_with_layers(train_c=True)
    coefficients = [layer.lora_c for layer in layers.values()]
    gradients = torch.autograd.grad(loss_of(model), coefficients)
    expected = [c.detach() * g for c, g in zip(coefficients, gradients, strict=True)]
    torch.testing.assert_close(effects, torch.cat(expected))


def test_scores_are_of_the_weights_before_the_step_and_resume_exactly() -> None:
    def begin(seed_steps: int, state: dict | None = None, weights: dict | None = None):
        model, layers = model_with_layers(train_c=False)
        if weights is not None:
            model.load_state_dict(weights)
        schedule = BudgetSchedule(init=2, target=0.5, total=8, interval=1, warmup=0.25)
        allocator = RankAllocator(layers, schedule, score="fisher", regrow=False)
        if state is not None:
            allocator.load_state_dict(state)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        allocator.attach(optimizer)
        averages = []
        expected = allocator.ema.clone()
        for _ in range(seed_steps):
            optimizer.zero_grad()
            loss_of(model).backward()
            effect = torch.cat([coefficient_effect(layer) for layer in layers.values()])
            expected = 0.9 * expected + 0.1 * effect.square()
            frozen = allocator.frozen
            optimizer.step()
            if not frozen:
                torch.testing.assert_close(allocator.ema, expected)
            averages.append(allocator.ema.clone())
        return allocator, model, averages

    whole, whole_model, _ = begin(8)
    first, first_model, _ = begin(3)
    second, model, _ = begin(5, first.state_dict(), first_model.state_dict())
    assert whole.ranks() == second.ranks()
    assert sum(whole.ranks().values()) == 1  # half of 2 layers
    for name, value in whole_model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("train_c", [True, False])
def test_a_loss_scalers_factor_is_taken_out_of_the_scores(train_c: bool) -> None:
    def scores(factor: float, grad_scale: torch.Tensor | None) -> torch.Tensor:
        model, layers = model_with_layers(train_c)
        schedule = BudgetSchedule(init=2, target=0.5, total=100)
        allocator = RankAllocator(layers, schedule, score="fisher", regrow=False)
        (factor * loss_of(model)).backward()
        allocator.observe(grad_scale)
        allocator.step()
        return allocator.ema

    plain = scores(1.0, None)
    assert plain.count_nonzero() == len(plain)
    torch.testing.assert_close(scores(64.0, torch.tensor(64.0)), plain)


def test_fisher_without_observed_gradients_says_so() -> None:
    _, layers = model_with_layers(train_c=False)
    schedule = BudgetSchedule(init=2, target=1, total=4)
    allocator = RankAllocator(layers, schedule, score="fisher")
    with pytest.raises(ValueError, match="reads the gradients before each optimizer step"):
        allocator.step()
    with pytest.raises(ValueError, match="needs gradients"):
        allocator.observe()


def test_random_keeps_each_component_as_often_as_any_other() -> None:
    kept: Counter[int] = Counter()
    for seed in range(3000):
        scores = random_scores([2, 3], None, seed)
        kept.update(scores.topk(2).indices.tolist())
    for index in range(5):
        assert kept[index] / 3000 == pytest.approx(2 / 5, abs=0.04)
    assert torch.equal(random_scores([4], None, 7), random_scores([4], None, 7))
    # Divided by their cost, as a budget of parameters does, they are uniform again.
    costs = torch.tensor([3.0, 3.0, 50.0])
    torch.testing.assert_close(
        random_scores([2, 1], [3, 50], 5) / costs, random_scores([2, 1], None, 5)
    )


def test_shuffling_stays_within_a_shape_and_reaches_every_order() -> None:
    ranks = {"a": 0, "b": 1, "c": 2, "wide": 7}
    shapes = {"a": (4, 4), "b": (4, 4), "c": (4, 4), "wide": (4, 9)}
    orders = Counter(tuple(shuffle_ranks(ranks, shapes, seed).values()) for seed in range(1200))
    assert len(orders) == 6  # 3!
    assert all(sorted(order[:3]) == [0, 1, 2] and order[3] == 7 for order in orders)
    assert all(count == pytest.approx(200, abs=70) for count in orders.values())


def test_scores_for_ranks_keep_just_these_ranks() -> None:
    scores = scores_for_ranks([0, 2, 1], [2, 2, 2], None, seed=3)
    best = set(scores.topk(3).indices.tolist())
    assert [sum(2 * layer + i in best for i in range(2)) for layer in range(3)] == [0, 2, 1]
    with pytest.raises(ValueError, match=r"give budget\.init=3"):
        scores_for_ranks([3], [2], None, seed=0)
