"""What an allocator may be attached to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dynarank.adapters.inject import inject, mark_trainable
from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.schedule import BudgetSchedule


def adapted() -> tuple[nn.Module, RankAllocator]:
    model = nn.Sequential(nn.Linear(4, 4))
    layers = inject(model, ["0"], r=2)
    mark_trainable(model)
    return model, RankAllocator(layers, BudgetSchedule(init=2, target=1, total=8, interval=1))


def trained_by(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


def test_an_optimizer_without_the_coefficients_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    early = trained_by(model)
    layers = inject(model, ["0"], r=2)
    mark_trainable(model)
    allocator = RankAllocator(layers, BudgetSchedule(init=2, target=1, total=8))
    with pytest.raises(ValueError, match="does not train the layers' coefficients c"):
        allocator.attach(early)
    early.step()
    assert allocator.t == 0  # no hook was left behind


def test_where_c_is_fixed_an_optimizer_without_A_and_B_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    early = trained_by(model)
    layers = inject(model, ["0"], r=2, start="orthogonal_A")
    mark_trainable(model)
    allocator = RankAllocator(layers, BudgetSchedule(init=2, target=1, total=8))
    with pytest.raises(ValueError, match="does not train the layers' factors A and B"):
        allocator.attach(early)
    early.step()
    assert allocator.t == 0
    # A run may have one optimizer for A and another for B.
    allocator.attach(torch.optim.SGD([layers["0"].lora_B], lr=0.1)).remove()
    allocator.attach(trained_by(model))


def test_what_is_no_optimizer_is_refused() -> None:
    _, allocator = adapted()
    mistaken: Any = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="the optimizer is a Linear"):
        allocator.attach(mistaken)


def test_accelerates_optimizer_counts_the_steps_that_it_really_takes() -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, allocator = adapted()
    model, optimizer = accelerator.prepare(model, trained_by(model))
    allocator.attach(optimizer, eta=0.1)
    for _ in range(6):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(1, 4)).square().mean())
            optimizer.step()
            optimizer.zero_grad()
    assert allocator.t == 3


def test_a_second_attachment_to_one_optimizer_is_refused() -> None:
    """It would count each step twice, and the ranks would freeze after half of the steps."""
    model, allocator = adapted()
    optimizer = trained_by(model)
    attachment = allocator.attach(optimizer)
    with pytest.raises(ValueError, match="attached to this optimizer already"):
        allocator.attach(optimizer)
    optimizer.step()
    assert allocator.t == 1
    allocator.attach(trained_by(model))  # one that takes the first one's place
    attachment.remove()
    allocator.attach(optimizer)
    optimizer.step()
    assert allocator.t == 2


def test_of_two_optimizers_the_steps_of_the_newer_alone_count() -> None:
    """As where matrices and vectors train under two: each step would count twice."""
    model, allocator = adapted()
    layer = allocator.layers[0]
    matrices = torch.optim.SGD([layer.lora_A, layer.lora_B, layer.lora_c], lr=0.1)
    coefficients = torch.optim.SGD([layer.lora_c], lr=0.1)
    allocator.attach(matrices)
    allocator.attach(coefficients)
    model(torch.ones(1, 4)).square().mean().backward()
    with pytest.warns(UserWarning, match="attached to another optimizer since"):
        matrices.step()
    coefficients.step()
    for _ in range(3):
        matrices.step()  # without a warning at each step
        coefficients.step()
    assert allocator.t == 4


@pytest.mark.parametrize("eta", [-0.1, float("nan"), float("inf")])
def test_a_weight_of_dem_that_would_spoil_the_gradients_is_refused(eta: float) -> None:
    model, allocator = adapted()
    optimizer = trained_by(model)
    with pytest.raises(ValueError, match=f"eta = {eta}: must be 0"):
        allocator.attach(optimizer, eta=eta)
    optimizer.step()
    assert allocator.t == 0  # no hook was left behind


def test_an_allocator_whose_layers_another_one_has_taken_stands_still() -> None:
    """As where the cell of a notebook that makes and attaches one is run again."""
    model, earlier = adapted()
    optimizer = trained_by(model)
    earlier.attach(optimizer, eta=0.1)
    optimizer.step()
    layers = dict(zip(earlier.names, earlier.layers, strict=True))
    later = RankAllocator(layers, BudgetSchedule(init=2, target=1, total=100))
    later.attach(optimizer)
    with pytest.warns(UserWarning, match="another allocator has taken the layers"):
        optimizer.step()
    for _ in range(10):
        optimizer.step()  # without a warning at each step
    assert (earlier.t, later.t) == (1, 11)
    assert not earlier.frozen
    assert all(bool(layer.mask.all()) for layer in later.layers)


def test_orthogonality_is_pulled_at_to_the_end() -> None:
    """DEM ends at the freeze; directions of length one are wanted after it, too."""
    model, allocator = adapted()
    optimizer = trained_by(model)
    allocator.attach(optimizer, orthogonality=0.5)
    while not allocator.frozen:
        optimizer.step()
    optimizer.zero_grad()
    optimizer.step()
    kept = [layer for layer in allocator.layers if bool(layer.mask.any())]
    assert kept
    for layer in allocator.layers:
        assert bool(layer.lora_A.grad.any()) == bool(layer.mask.any())
