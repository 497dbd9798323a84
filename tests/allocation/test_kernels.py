"""How many kernels a training step takes: at most PEFT LoRA's and 5 %, with allocator and DEM."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dynarank.adapters.inject import inject, mark_trainable
from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.dem import add_dem_gradient
from dynarank.allocation.schedule import BudgetSchedule

LAYERS = 72  # as many as RoBERTa-base has
NO_KERNEL = {
    *("view", "t", "transpose", "expand", "unsqueeze", "squeeze", "select", "slice", "detach"),
    *("alias", "_unsafe_view", "permute", "split", "split_with_sizes", "unbind", "diagonal"),
    *("empty", "empty_like", "_reshape_alias", "as_strided", "_local_scalar_dense"),
}


class Kernels(TorchDispatchMode):
    """Counts the operations that compute something, and those that read a value on the host."""

    count = 0
    readings = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.count += name not in NO_KERNEL
        self.readings += name == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = [(16, 16)] * 4 + [(16, 32), (32, 16)]  # as RoBERTa's: three shapes
        self.linears = nn.ModuleList(nn.Linear(*size) for size in sizes * (LAYERS // len(sizes)))

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.linears:
            x = torch.tanh(linear(x))
        return x.square().mean()


def lora_step(dropout: float) -> Kernels:
    targets = [f"linears.{index}" for index in range(LAYERS)]
    model = get_peft_model(Chain(), LoraConfig(r=4, target_modules=targets, lora_dropout=dropout))
    with Kernels() as kernels:
        model(torch.randn(3, 16)).backward()
    return kernels


def dynarank_step(dropout: float) -> Kernels:
    model = Chain()
    layers = inject(model, [r"linears\.\d+"], r=4, dropout=dropout)
    mark_trainable(model)
    allocator = RankAllocator(layers, BudgetSchedule(init=4, target=2, total=1000))
    allocator.check_every_step = False  # as on accelerators
    model(torch.randn(3, 16)).backward()  # every gradient is there, and the masks were read
    with Kernels() as kernels:
        model(torch.randn(3, 16)).backward()
        add_dem_gradient(layers, 0.1)
        assert not allocator.step()
    # Each gradient is added to the first step's, where LoRA's is not.
    kernels.count -= 3 * LAYERS
    return kernels


@pytest.fixture
def as_on_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the ways of a GPU on this CPU, in both contenders: dropout is one kernel there."""
    monkeypatch.setattr("dynarank.adapters.fast_path.draws_cheap_bits", lambda x: False)
    monkeypatch.setattr("dynarank.allocation.importance._may_cancel", lambda *_: False)

    def dropout(x: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
        return torch.native_dropout(x, p, training)[0]

    monkeypatch.setattr(nn.functional, "dropout", dropout)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_step_takes_few_more_kernels_than_lora(dropout: float, as_on_accelerators: None) -> None:
    ours, lora = dynarank_step(dropout).count, lora_step(dropout).count
    assert ours <= 1.05 * lora, (ours, lora)


def test_an_ordinary_step_reads_nothing_on_the_host(as_on_accelerators: None) -> None:
    assert dynarank_step(0.1).readings == 0
