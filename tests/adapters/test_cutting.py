"""Cutting a live model changes neither its outputs nor the steps that follow, but for rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dynarank.adapters.cutting import Cuts, cut_optimizer, cut_tensors, cut_to_kept
from dynarank.adapters.folding import fold, merge
from dynarank.adapters.inject import adapter_layers, inject, mark_trainable
from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.schedule import BudgetSchedule

MASKS = {"0": [True, False, True, False], "2": [False] * 4, "4": [True] * 4}
Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.05, weight_decay=0.0),
    "amsgrad": lambda params: torch.optim.AdamW(params, lr=0.05, weight_decay=0.0, amsgrad=True),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
    "fused": lambda params: torch.optim.AdamW(params, lr=0.05, weight_decay=0.0, fused=True),
}


def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), Conv1D(8, 8), nn.Tanh(), nn.Linear(8, 3), nn.Linear(3, 2)
    )
    inject(net, ["0", "2", "4"], r=4, alpha=6.0)
    mark_trainable(net, head=["5"])
    for layer in adapter_layers(net).values():
        nn.init.normal_(layer.lora_c)
    return net.double()


def trained(net: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(9, 6, generator=draw, dtype=torch.float64)
    loss = net(x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss  # the graph stays alive with it, as in a loop that logs its loss


def freeze(net: nn.Module) -> None:
    for name, layer in adapter_layers(net).items():
        layer.mask.copy_(torch.tensor(MASKS[name]))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_the_steps_after_the_cut_are_those_of_the_masked_model(make: Optimizer) -> None:
    masked, cut = model(), model()
    optimizers = {net: make(trained(net)) for net in (masked, cut)}
    losses = []
    for seed in range(3):
        losses = [step(net, optimizers[net], seed) for net in (masked, cut)]
    freeze(masked)
    freeze(cut)
    cut_optimizer(optimizers[cut], cut_to_kept(cut))
    assert torch.equal(*losses)
    for seed in range(3, 8):
        losses = [step(net, optimizers[net], seed) for net in (masked, cut)]
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=1e-12)
    for name, layer in adapter_layers(cut).items():
        reference = adapter_layers(masked)[name]
        assert layer.r == sum(MASKS[name])
        assert layer.scaling == reference.scaling
        torch.testing.assert_close(layer.delta_weight(), reference.delta_weight())


def test_only_the_kept_components_are_left() -> None:
    net = model()
    freeze(net)
    layers = adapter_layers(net)
    before = {name: copy.deepcopy(layer) for name, layer in layers.items()}
    cuts = cut_to_kept(net)
    assert set(cuts) == {f"{name}.lora_{f}" for name in ("0", "2") for f in "ABc"}
    assert adapter_layers(net) == layers  # the layers are the same objects
    for name, layer in layers.items():
        kept = torch.tensor(MASKS[name])
        assert torch.equal(layer.lora_A, before[name].lora_A[kept])
        assert torch.equal(layer.lora_B, before[name].lora_B[:, kept])
        assert torch.equal(layer.lora_c, before[name].lora_c[kept])
        assert layer.mask.tolist() == [True] * int(kept.sum())
        for new, old in zip(fold(layer), fold(before[name]), strict=True):
            assert torch.equal(new, old)
    assert cut_to_kept(net) == {}


def test_a_layer_of_rank_zero_is_the_base_and_trains_nothing() -> None:
    net = model()
    freeze(net)
    optimizer = OPTIMIZERS["adamw"](trained(net))
    order = [len(group["params"]) for group in optimizer.param_groups]
    cut_optimizer(optimizer, cut_to_kept(net))
    layer = adapter_layers(net)["2"]
    x = torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(layer(x), layer.base(x))
    assert not any(p.requires_grad for p in layer.parameters())
    assert [len(group["params"]) for group in optimizer.param_groups] == order
    step(net, optimizer, 0)
    merge(net)
    assert not adapter_layers(net)


def test_averages_and_gradients_are_cut_alike() -> None:
    net = model()
    net(torch.randn(4, 6, dtype=torch.float64)).sum().backward()
    average = {name: p.detach().clone() for name, p in net.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.requires_grad}
    freeze(net)
    cuts = cut_to_kept(net)
    average, gradients = cut_tensors(average, cuts), cut_tensors(gradients, cuts)
    for name, parameter in net.named_parameters():
        assert torch.equal(average[name], parameter)
        if parameter.grad is not None:
            assert torch.equal(gradients[name], parameter.grad)


def test_a_fresh_model_is_cut_by_given_masks_and_loads_the_cut_state() -> None:
    net = model()
    freeze(net)
    kept = {name: torch.tensor(mask) for name, mask in MASKS.items()}
    optimizer = OPTIMIZERS["adamw"](trained(net))
    step(net, optimizer, 0)
    cut_optimizer(optimizer, cut_to_kept(net))

    fresh = model()
    resumed = OPTIMIZERS["adamw"](trained(fresh))
    cut_optimizer(resumed, cut_to_kept(fresh, kept))
    fresh.load_state_dict(net.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(1, 4):
        assert torch.equal(step(net, optimizer, seed), step(fresh, resumed, seed))


def test_an_allocator_goes_on_after_the_cut() -> None:
    net = model()
    schedule = BudgetSchedule(init=4, target=2, total=8, warmup=0.0, interval=1)
    allocator = RankAllocator(adapter_layers(net), schedule)
    with pytest.raises(ValueError, match="Cut the model after the freeze"):
        cut_to_kept(net)
    for _ in range(4):
        allocator.step()
    ranks, state = allocator.ranks(), allocator.state_dict()
    cut_to_kept(net)
    assert allocator.step() is False
    assert allocator.ranks() == ranks
    assert int(allocator.active_count()) == 6
    assert allocator.state_dict()["layers"] == state["layers"]


def test_what_does_not_fit_is_refused_and_nothing_changes() -> None:
    net = model()
    before = copy.deepcopy(net.state_dict())
    kept = {name: torch.tensor(mask) for name, mask in MASKS.items()}
    with pytest.raises(ValueError, match="it has 4"):
        cut_to_kept(net, {**kept, "4": torch.ones(3, dtype=torch.bool)})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    no_cuts: Cuts = {}
    assert cut_tensors(before, no_cuts) == before
