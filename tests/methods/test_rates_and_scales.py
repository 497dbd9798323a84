"""Settings that keep comparisons fair: rates of B and of the head, and a component's size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import tiny_roberta

from dynarank.allocation.config import BudgetConfig, DemConfig
from dynarank.config.schema import SCHEMAS, OptimizerConfig
from dynarank.methods import METHODS, build_method
from dynarank.methods.config import MethodConfig
from dynarank.pretrained.architectures import ARCHITECTURES
from dynarank.training.optimizer import build_optimizer

LR = 2e-3


def roberta() -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(tiny_roberta())


def adapted(name: str, target: float = 2, init: int | None = None, **settings: Any) -> Any:
    """Return a method that has adapted a small model."""
    config: Any = SCHEMAS.get(f"method/{name}", MethodConfig)(name=name, **settings)
    method = build_method(config, BudgetConfig(target=target, init=init), DemConfig(eta=0.0))
    model = roberta()
    method.adapt(model, ARCHITECTURES["roberta"].targets, ["classifier"])
    return method


def rates(method: Any, head_lr: float | None = None) -> dict[int, list[float]]:
    """Return the rates of each parameter, by its id, as a run's optimizer has them."""
    built = build_optimizer(
        method.model,
        OptimizerConfig(lr=LR, warmup=0.0),
        LR,
        total_steps=10,
        ratios=method.all_lr_ratios(LR, head_lr),
    )
    found: dict[int, list[float]] = {}
    for group in built["optimizer"].param_groups:
        for parameter in group["params"]:
            found.setdefault(id(parameter), []).append(group["lr"])
    return found


@pytest.mark.parametrize("name", ["dora", "dynarank", "lora"])
def test_b_and_b_alone_learns_at_its_ratio(name: str) -> None:
    method = adapted(name, b_lr_ratio=16.0)
    found = rates(method, head_lr=5e-3)
    trained = {n: p for n, p in method.model.named_parameters() if p.requires_grad}
    expected: dict[str, Any] = {}
    for parameter_name in trained:
        if "lora_B" in parameter_name:
            expected[parameter_name] = [pytest.approx(16 * LR)]
        elif parameter_name.startswith("classifier"):
            expected[parameter_name] = [pytest.approx(5e-3)]
        else:
            expected[parameter_name] = [LR]
    assert {n: found[id(p)] for n, p in trained.items()} == expected
    assert sum("lora_B" in parameter_name for parameter_name in trained) == len(method.layers)


@pytest.mark.parametrize("name", list(METHODS))
def test_the_head_has_a_rate_of_its_own_under_every_method(name: str) -> None:
    settings = {"reserved": 32} if name == "prompt" else {}  # the small model's positions are few
    method = adapted(name, **settings)
    head = {id(p) for p in method.model.classifier.parameters() if p.requires_grad}
    assert head
    before, after = rates(method), rates(method, head_lr=5e-3)
    trained = [id(p) for p in method.model.parameters() if p.requires_grad]
    assert sorted(after) == sorted(before) == sorted(set(trained))
    for parameter, known in after.items():
        if parameter in head:
            assert known == [pytest.approx(5e-3)]
        else:
            assert known == before[parameter]
        assert len(known) == 1  # in one group, and stepped once


def update_of_one_component(method: Any) -> float:
    """Return the size of what one component of ones adds to the output of a layer."""
    layer = next(iter(method.layers.values())).eval()
    a, b = factors(layer)
    x = torch.ones(1, layer.in_features)
    with torch.no_grad():
        a.zero_()
        b.zero_()
        before = layer(x)
        a[0], b[:, 0] = 1.0, 1.0
        return float((layer(x) - before).norm() / layer.in_features)


def factors(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B of our layer, whose c becomes 1, or of PEFT's."""
    if hasattr(layer, "lora_c"):
        layer.lora_c.data.fill_(1.0)
        return layer.lora_A.data, layer.lora_B.data
    return layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data


@pytest.mark.parametrize(
    ("alpha_over", "target", "inits", "ratios"),
    [
        ("target", 2, (2, 3, 8), (1.0, 1.0, 1.0)),
        ("init", 2, (2, 4, 8), (1.0, 1 / 2, 1 / 4)),
        ("sqrt", 4, (4, 8, 16), (1.0, 1.0, 1.0)),
        ("target", 0.25, (1, 2, 8), (1.0, 1.0, 1.0)),
    ],
)
def test_a_component_is_as_large_as_alpha_over_says(
    alpha_over: str, target: float, inits: tuple[int, ...], ratios: tuple[float, ...]
) -> None:
    sizes = []
    for init in inits:
        method = adapted("dora", target, init, alpha=8.0, alpha_over=alpha_over)
        sizes.append(update_of_one_component(method))
    assert [size / sizes[0] for size in sizes] == pytest.approx(ratios, rel=1e-4)


def test_scales_are_alpha_over_the_target_or_over_its_root() -> None:
    for name in ("dora", "lora"):
        sizes: dict[tuple[str, float], float] = {}
        for over in ("target", "sqrt"):
            for target in (0.5, 1, 4):
                method = adapted(name, target, alpha=8.0, alpha_over=over)
                width = next(iter(method.layers.values())).out_features
                sizes[over, target] = update_of_one_component(method) / math.sqrt(width)
        expected: dict[tuple[str, float], float] = {("target", 4): 2.0, ("sqrt", 4): 4.0}
        for key, size in sizes.items():
            assert size == pytest.approx(expected.get(key, 8.0), rel=1e-4), (name, key)


def scheduled(method: Any, head_lr: float | None, total: int = 40) -> list[tuple[float, float]]:
    """Return the rates of B and of the head after each of the steps of a run."""
    built = build_optimizer(
        method.model,
        OptimizerConfig(lr=LR, warmup=0.1),
        LR,
        total_steps=total,
        ratios=method.all_lr_ratios(LR, head_lr),
        factor=method.rate_factor(total),
        steady=method.head_parameters(),
    )
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    (of_b, of_head) = ({id(p) for p in part} for part in (b_factors(method), head_weights(method)))
    rates = []
    for _ in range(total):
        found = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                found[id(parameter)] = group["lr"]
        ((b,), (head,)) = ({found[i] for i in part} for part in (of_b, of_head))
        rates.append((b, head))
        optimizer.step()
        scheduler.step()
    return rates


def b_factors(method: Any) -> list[torch.nn.Parameter]:
    return [layer.lora_B for layer in method.layers.values()]


def head_weights(method: Any) -> list[torch.nn.Parameter]:
    return [p for p in method.model.classifier.parameters() if p.requires_grad]


@pytest.mark.parametrize("head_lr", [None, 5e-3])
def test_the_rate_follows_the_number_of_components_and_the_heads_does_not(
    head_lr: float | None,
) -> None:
    steps = 40
    slowed = scheduled(adapted("dynarank", target=2, init=8, rate_power=0.5), head_lr, steps)
    plain = scheduled(adapted("dynarank", target=2, init=8, rate_power=0.0), head_lr, steps)
    for step, (mine, usual) in enumerate(zip(slowed, plain, strict=True)):
        # The published schedule, written out: warm-up 0.15, freeze at a half, cubic.
        if step <= 6:
            alive = 8.0
        elif step >= 20:
            alive = 2.0
        else:
            alive = 2 + 6 * (1 - ((step - 6) / 14) ** 3)
        assert mine[0] == pytest.approx(usual[0] * math.sqrt(2 / alive))
        assert mine[1] == pytest.approx(usual[1])
    assert slowed[5][0] == pytest.approx(plain[5][0] / 2)
    assert adapted("dora", init=8).rate_factor(steps) is None
    assert adapted("dynarank", target=2, init=2).rate_factor(steps) is None
