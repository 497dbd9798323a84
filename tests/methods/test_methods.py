from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dynarank.allocation.config import BudgetConfig, DemConfig
from dynarank.config.schema import SCHEMAS
from dynarank.errors import UserError
from dynarank.methods import build_method
from dynarank.methods.config import MethodConfig
from dynarank.methods.dora_config import DoRAConfig
from dynarank.pretrained.architectures import ARCHITECTURES


def dora(**budget: Any) -> Any:
    return build_method(DoRAConfig(name="dora"), BudgetConfig(**budget), DemConfig(eta=0.5))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 10), nn.Linear(10, 4), nn.Linear(4, 2)


def test_dora_adapts_the_targets_and_leaves_the_head_to_train() -> None:
    net, method = Net(), dora(target=2)
    method.adapt(net, ["first", "second"], ["head"])
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    factors = {f"{layer}.lora_{factor}" for layer in ("first", "second") for factor in "ABc"}
    assert trained == factors | {"head.weight", "head.bias"}
    assert all(layer.r == 3 for layer in method.layers.values())


def test_dora_counts_what_its_nonzero_components_take() -> None:
    net, method = Net(), dora(target=2)
    method.adapt(net, ["first", "second"], ["head"])
    method.layers["first"].lora_c.data[:] = torch.tensor([1.0, 0.0, 2.0])
    assert method.ranks() == {"first": 2, "second": 0}
    assert method.adapter_parameters() == 2 * (6 + 10)


@pytest.mark.parametrize(("target", "millions"), [(2, 0.33), (8, 1.33)])
def test_the_papers_budgets_on_roberta_base(target: int, millions: float) -> None:
    from transformers import AutoModelForSequenceClassification, RobertaConfig

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(RobertaConfig())
    method = dora(target=target, init=target)
    method.adapt(model, ARCHITECTURES["roberta"].targets, ["classifier"])
    assert len(method.layers) == 72
    parameters = sum(
        layer.r * (layer.in_features + layer.out_features) for layer in method.layers.values()
    )
    assert parameters / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_penalty_is_eta_times_dem_or_nothing() -> None:
    from dynarank import dem_penalty

    net, method = Net(), dora(target=2)
    method.adapt(net, ["first"], ["head"])
    assert method.penalty(False).item() == pytest.approx(
        0.5 * dem_penalty(list(method.layers.values())).item()
    )
    method.dem.eta = 0.0
    assert method.penalty(False) is None


def test_dynarank_keeps_directions_orthogonal_to_the_end() -> None:
    from dynarank import add_orthogonality_gradient

    settings = {"init": "orthogonal", "train_c": True, "orthogonality": 0.5}
    config: Any = SCHEMAS["method/dynarank"]
    budget = BudgetConfig(target=2, init=3)
    method: Any = build_method(config(name="dynarank", **settings), budget, DemConfig())
    net = Net()
    method.adapt(net, ["first"], ["head"])
    layers = list(method.layers.values())
    assert add_orthogonality_gradient(layers, 1.0) < 1e-5  # it starts there
    torch.nn.init.normal_(layers[0].lora_A)
    excess = add_orthogonality_gradient(layers, 0.0)
    for frozen in (False, True):
        layers[0].lora_A.grad = None
        assert method.add_penalty_gradient(frozen).item() == pytest.approx(0.5 * excess.item())
        assert layers[0].lora_A.grad.any()
    plain: Any = build_method(config(name="dynarank", orthogonality=0.0), budget, DemConfig())
    plain.adapt(Net(), ["first"], ["head"])
    assert plain.add_penalty_gradient(False) is None


def test_directions_of_A_alone_leave_the_size_in_B() -> None:
    config: Any = SCHEMAS["method/dynarank"]
    settings = config(name="dynarank", init="orthogonal_A", orthogonality=0.1)
    method: Any = build_method(settings, BudgetConfig(target=2, init=3), DemConfig())
    method.adapt(Net(), ["first"], ["head"])
    (layer,) = method.layers.values()
    assert method.add_penalty_gradient(False).item() == pytest.approx(0, abs=1e-6)
    torch.nn.init.normal_(layer.lora_A)
    torch.nn.init.normal_(layer.lora_B)
    assert method.add_penalty_gradient(True) > 0
    assert layer.lora_A.grad.any()
    assert layer.lora_B.grad is None


def test_directions_whose_size_would_be_nowhere_or_twice_are_refused() -> None:
    config: Any = SCHEMAS["method/dynarank"]
    with pytest.raises(ValueError, match=r"pull B.* method\.init=orthogonal, or"):
        config(name="dynarank", init="lora", train_c=True, orthogonality=0.5)
    with pytest.raises(ValueError, match=r"orthogonal_A: .* Set method\.train_c=false"):
        config(name="dynarank", init="orthogonal_A", train_c=True)


@pytest.mark.parametrize("name", ["dora", "dynarank", "adalora", "global_svd", "sora", "gora"])
@pytest.mark.parametrize("unit", ["components", "parameters"])
def test_a_budget_that_leaves_nothing_is_refused_before_training(name: str, unit: str) -> None:
    # One component costs 6, 9 or 12 parameters: 0.2 stands for 5.4, and half of three for one.
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 6), "c": nn.Linear(6, 6)})
    target = {"components": 0.16, "parameters": 0.2}[unit]
    sized = BudgetConfig(target=target, unit=unit)
    config: Any = SCHEMAS[f"method/{name}"]
    with pytest.raises(ValueError, match=r"Give at least (0\.1\d+|0\.2\d+), or") as raised:
        build_method(config(name=name), sized, DemConfig()).adapt(net, ["a", "b", "c"], [])
    # The advice is one that is taken.
    sized.target = float(str(raised.value).partition("at least ")[2].partition(",")[0])
    build_method(config(name=name), sized, DemConfig()).adapt(net, ["a", "b", "c"], [])


def test_head_only_trains_the_head_and_wants_one() -> None:
    net, method = Net(), build_method(MethodConfig(name="head"), BudgetConfig(), DemConfig())
    method.adapt(net, [], ["head"])
    assert [name for name, p in net.named_parameters() if p.requires_grad] == [
        "head.weight",
        "head.bias",
    ]
    assert method.allocator(10) is None
    with pytest.raises(ValueError, match="no task head"):
        method.adapt(Net(), [], [])


def test_an_unknown_method_is_named_with_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"method\.name = 'dorra' is not known\. Did you mean 'dora'"
    ):
        build_method(MethodConfig(name="dorra"), BudgetConfig(), DemConfig())


def test_alpha_null_starts_components_as_large_as_at_r8() -> None:
    torch.manual_seed(0)
    sizes = []
    for target in (2, 8):
        net = nn.ModuleDict({"first": nn.Linear(300, 400)})
        method = build_method(
            DoRAConfig(name="dora", alpha=None), BudgetConfig(target=target), DemConfig()
        )
        method.adapt(net, ["first"], [])
        layer = method.layers["first"]
        sizes.append(
            (layer.scaling * layer.lora_A.norm(dim=1) * layer.lora_B.norm(dim=0)).mean().item()
        )
    assert method.layers["first"].alpha == 8
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_c_may_have_a_learning_rate_of_its_own() -> None:
    from dynarank.config.schema import OptimizerConfig
    from dynarank.training.optimizer import build_optimizer

    net = Net()
    method = build_method(DoRAConfig(name="dora", c_lr_ratio=5.0), BudgetConfig(), DemConfig())
    method.adapt(net, ["first", "second"], ["head"])
    optimizer = build_optimizer(net, OptimizerConfig(warmup=0), 0.01, 10, method.lr_ratios())[
        "optimizer"
    ]
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == sum(parameter.requires_grad for parameter in net.parameters())
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == pytest.approx(0.05 if name.endswith("lora_c") else 0.01)


@pytest.mark.parametrize(
    ("name", "label", "matrices"),
    [
        ("dora", "rank 3 to 2", 72),
        ("adalora", "rank 3 to 2", 72),
        ("lora", "rank 2", 72),
        ("houlsby", "bottleneck 8", 0),
        ("prompt", "380 vectors", 0),
        ("bitfit", "", 0),
    ],
)
def test_a_method_says_its_own_size_under_a_budget(name: str, label: str, matrices: int) -> None:
    from transformers import AutoModelForSequenceClassification, RobertaConfig

    from dynarank.config.schema import SCHEMAS

    with torch.device("meta"):
        config = RobertaConfig(max_position_embeddings=514)
        model = AutoModelForSequenceClassification.from_config(config)
    schema = SCHEMAS.get(f"method/{name}", MethodConfig)
    method = build_method(schema(name=name), BudgetConfig(target=2), DemConfig())
    size = method.size_under_budget(model, ARCHITECTURES["roberta"].targets, ["classifier"])
    assert (size.label, size.matrices) == (label, matrices)
    assert size.components == 2 * matrices
    if name in ("dora", "adalora", "lora"):
        assert size.parameters == 331_776
    else:
        assert size.parameters == method.adapter_parameters()
