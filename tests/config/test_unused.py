"""Settings that are told to change nothing change nothing, and those that are not told do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_roberta
from torch import Tensor

from dynarank.allocation.config import BudgetConfig, DemConfig
from dynarank.config.schema import SCHEMAS, OptimizerConfig, TrainConfig
from dynarank.config.unused import unused_settings
from dynarank.methods import METHODS, build_method
from dynarank.methods.config import MethodConfig
from dynarank.pretrained.architectures import ARCHITECTURES
from dynarank.training.optimizer import build_optimizer

STEPS, LR = 8, 0.05
BASE: dict[str, Any] = {"target": 2, "init": 5, "warmup": 0.125, "final": 0.25, "interval": 2}
CHANGES: dict[str, Any] = {
    "budget.target": 1,
    "budget.init": 6,
    "budget.warmup": 0.5,
    "budget.final": 0.5,
    "budget.interval": 3,
    "budget.regrow": False,
    "budget.schedule": "linear",
    "budget.unit": "parameters",
    "budget.min_rank": 2,
    "budget.max_rank": 2,
    "dem.eta": 0.5,
}
"""Another value of each setting of a budget and of DEM."""


SETTINGS: dict[str, dict[str, Any]] = {
    "dora": {"score": "absolute"},  # of which layers differ more than of shares
    "lora": {"placement": "random"},  # under which it reads most
    "dynarank": {"train_c": True, "init": "lora", "orthogonality": 0.0},
    "prompt": {"reserved": 32},  # the small model's positions are few
}
"""Of methods that read all they can, or show it, under other settings than their defaults."""


def configured(method: str, values: dict[str, Any]) -> TrainConfig:
    """A run's configuration, with values in place of those that are the tests' own."""
    of_group: dict[str, dict[str, Any]] = {
        "method": dict(SETTINGS.get(method, {})),
        "budget": dict(BASE),
        "dem": {},
    }
    for name, value in values.items():
        group, _, key = name.partition(".")
        of_group[group][key] = value
    config: Any = SCHEMAS.get(f"method/{method}", MethodConfig)
    return TrainConfig(
        method=config(name=method, **of_group["method"]),
        budget=BudgetConfig(**of_group["budget"]),
        dem=DemConfig(**of_group["dem"]),
        output_dir="x",
    )


def trained(run: TrainConfig) -> dict[str, Tensor] | str:
    """What a small model is after some steps as training takes them, or why it is refused."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(
        tiny_roberta(num_hidden_layers=1, intermediate_size=96)
    )
    method = build_method(run.method, run.budget, run.dem)
    try:
        method.adapt(model, ARCHITECTURES["roberta"].targets, ["classifier"])
    except ValueError as error:
        return str(error)
    if method.preparation_batches:
        method.prepare(batches(2))
    torch.manual_seed(1)
    allocator: Any = method.allocator(STEPS)
    built = build_optimizer(
        method.model,
        OptimizerConfig(lr=LR, warmup=0.0),
        LR,
        STEPS,
        method.all_lr_ratios(LR, None),
        factor=method.rate_factor(STEPS),
        steady=method.head_parameters(),
    )
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    for batch in batches(STEPS):
        frozen = allocator is None or allocator.frozen
        optimizer.zero_grad()
        loss = method.model(**batch).loss
        penalty = None if method.closed_form_penalty else method.penalty(frozen)
        (loss if penalty is None else loss + penalty).backward()
        method.observe_gradients()
        if method.closed_form_penalty:
            method.add_penalty_gradient(frozen)
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        if allocator is not None:
            allocator.lr = rate
            allocator.step()
    return {name: value.clone() for name, value in method.model.state_dict().items()}


def batches(count: int) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(5)
    made = []
    for _ in range(count):
        ids = torch.randint(3, 30, (8, 7), generator=draw)
        labels = torch.randint(0, 2, (8,), generator=draw)
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return made


def alike(a: dict[str, Tensor] | str, b: dict[str, Tensor] | str) -> bool:
    """Whether two outcomes are equal to the bit."""
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    if a.keys() != b.keys():
        return False
    return all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("method", list(METHODS))
def test_what_a_method_does_not_read_changes_nothing_and_the_rest_does(method: str) -> None:
    """Every setting of the budget and of DEM, by training with another value of it."""
    base = trained(configured(method, {}))
    assert not isinstance(base, str)
    for setting, value in CHANGES.items():
        reads = setting in METHODS[method].reads
        try:
            run = configured(method, {setting: value})
            run.method.check_budget(run.budget)
        except ValueError:  # a value that cannot be had is refused: this is no silence
            assert reads, setting
            continue
        assert alike(base, trained(run)) == (not reads), setting
        is_what_it_does = METHODS[method].acts_as.get(setting) == value
        assert (setting in unused_settings(run)) == (not reads and not is_what_it_does), setting


EQUAL = {"budget.init": 2}
"""Nothing is pruned: it is the target, too."""
MORE = {"budget.init": 5}
RANDOM = {"method.placement": "random"}
FIXED = {"method.init": "lora", "method.train_c": False, "budget.regrow": False}
TRAINED = {"method.train_c": True, "method.init": "orthogonal"}
SWITCHED_OFF: list[tuple[str, dict[str, Any], str, Any, dict[str, Any]]] = [
    ("lora", {"method.placement": "even"}, "method.placement_seed", 7, RANDOM),
    ("lora", {"method.placement": "attention"}, "budget.init", 6, RANDOM),
    ("dora", {}, "method.score_seed", 7, {"method.score": "random"}),
    ("dora", {"method.score": "random"}, "method.beta", 0.1, {"method.score": "relative"}),
    ("dora", {"method.score": "sensitivity"}, "method.beta", 0.1, {"method.score": "absolute"}),
    ("dora", FIXED, "budget.regrow", True, TRAINED),
    ("dora", {"budget.schedule": "step"}, "budget.warmup", 0.5, {"budget.schedule": "linear"}),
    ("dora", {"budget.schedule": "step"}, "budget.interval", 3, {"budget.schedule": "linear"}),
    ("sora", {"budget.schedule": "step"}, "budget.warmup", 0.5, {"budget.schedule": "linear"}),
    ("sora", {"method.sparsity": 0}, "budget.warmup", 0.5, {"method.sparsity": 1}),
    ("sora", {"method.sparsity": 0}, "budget.schedule", "linear", {"method.sparsity": 1}),
    ("sora", EQUAL, "method.sparsity", 9.0, MORE),
    ("dora", EQUAL, "budget.warmup", 0.5, MORE),
    ("dora", EQUAL, "budget.interval", 3, MORE),
    ("adalora", EQUAL, "budget.interval", 3, MORE),
    ("adalora", EQUAL, "method.beta", 0.1, MORE),
    ("dora", EQUAL, "budget.schedule", "linear", MORE),
    ("dora", EQUAL, "budget.regrow", False, MORE),
    ("dora", EQUAL, "budget.unit", "parameters", MORE),
    ("global_svd", EQUAL, "budget.unit", "parameters", MORE),
    ("dora", EQUAL, "method.score", "relative", MORE),
    ("dora", EQUAL, "method.beta", 0.1, MORE),
    ("dynarank", EQUAL, "method.rate_power", 0.1, MORE),
]
"""A method, other settings, one that they switch off, another value of it, and what switches it on
again."""


@pytest.mark.parametrize(("method", "values", "setting", "value", "remedy"), SWITCHED_OFF)
def test_a_setting_that_others_switch_off_changes_nothing_until_they_switch_it_on(
    method: str, values: dict[str, Any], setting: str, value: Any, remedy: dict[str, Any]
) -> None:
    run = configured(method, {**values, setting: value})
    assert setting in unused_settings(run)
    assert alike(trained(configured(method, values)), trained(run))
    on = {**values, **remedy}
    run = configured(method, {**on, setting: value})
    assert setting not in unused_settings(run)
    assert not alike(trained(configured(method, on)), trained(run))
