"""The allocation asks an adapted layer for the protocol's members, and for nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dynarank.adapters.layer import DoRALinear
from dynarank.adapters.progress import AllocationProgress
from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.dem import dem_penalty
from dynarank.allocation.schedule import BudgetSchedule

SHAPES = {"first": (6, 5), "second": (5, 7), "third": (6, 5)}


@dataclass
class View:
    """The protocol's members and no more, on another layer's parameters."""

    r: int
    in_features: int
    out_features: int
    scaling: float
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_c: nn.Parameter
    mask: torch.Tensor
    progress: AllocationProgress | None = None


def layers() -> dict[str, DoRALinear]:
    torch.manual_seed(0)
    made = {name: DoRALinear(nn.Linear(*shape), r=4) for name, shape in SHAPES.items()}
    for layer in made.values():
        nn.init.normal_(layer.lora_c)
    return made


def views(made: dict[str, DoRALinear]) -> dict[str, View]:
    viewed = {}
    for name, layer in made.items():
        members = {field: getattr(layer, field) for field in View.__dataclass_fields__}
        viewed[name] = View(**members)
    return viewed


def backward(made: dict[str, DoRALinear], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for layer in made.values():
        layer.zero_grad()
        layer(torch.randn(3, layer.in_features, generator=draw)).square().sum().backward()


def test_a_view_is_allocated_as_the_layer_itself() -> None:
    schedule = BudgetSchedule(init=4, target=2, total=8, warmup=0.0, interval=2)
    for score in ("relative", "absolute", "sensitivity"):
        plain, viewed = layers(), layers()
        view = views(viewed)
        reference = RankAllocator(plain, schedule, score=score)
        allocator = RankAllocator(view, schedule, score=score)
        for step in range(8):
            backward(plain, step)
            backward(viewed, step)
            assert allocator.step() == reference.step()
            assert torch.equal(allocator.ema, reference.ema)
            assert torch.equal(dem_penalty(view), dem_penalty(plain))
        assert allocator.frozen
        assert allocator.ranks() == reference.ranks()
        for name, layer in viewed.items():
            assert torch.equal(layer.mask, plain[name].mask)
            assert torch.equal(layer.lora_c, plain[name].lora_c)


def test_every_function_takes_a_dict_or_a_list() -> None:
    made = layers()
    members = list(made.values())
    assert torch.equal(dem_penalty(made), dem_penalty(members))
    schedule = BudgetSchedule(init=4, target=2, total=8)
    named, listed = RankAllocator(made, schedule), RankAllocator(members, schedule)
    named.update()
    listed.update()
    assert torch.equal(named.ema, listed.ema)
    assert list(listed.ranks()) == ["0", "1", "2"]
