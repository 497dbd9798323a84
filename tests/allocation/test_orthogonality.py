"""The orthogonal regularization against autograd, against PEFT's AdaLoRA, and at its aim."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from dynarank.adapters.cutting import cut_to_kept
from dynarank.adapters.layer import DoRALinear
from dynarank.allocation.orthogonality import add_orthogonality_gradient

SHAPES = [(3, 6, 5), (2, 6, 5), (3, 6, 5), (4, 5, 6), (1, 4, 4), (7, 5, 4)]


def layers() -> list[DoRALinear]:
    """Adapters of (r, d_in, d_out), some of whose components are pruned for good."""
    torch.manual_seed(0)
    made = [DoRALinear(nn.Linear(d_in, d_out), r) for r, d_in, d_out in SHAPES]
    made[0].mask[1] = False
    made[3].mask[:] = False
    return made


def by_definition(adapters: list[DoRALinear]) -> Tensor:
    """Factor by factor, of the kept components alone, in float64."""
    norms = []
    for layer in adapters:
        factors = [layer.lora_A, layer.lora_B.T] if layer.lora_c.requires_grad else [layer.lora_A]
        for rows in factors:
            kept = rows[layer.mask].double()
            norms.append((kept @ kept.T - torch.eye(len(kept), dtype=torch.float64)).norm())
    return torch.stack(norms).mean()


def test_value_and_gradient_are_those_of_the_definition() -> None:
    adapters = layers()
    factors = [factor for layer in adapters for factor in (layer.lora_A, layer.lora_B)]
    expected = torch.autograd.grad(0.7 * by_definition(adapters), factors)
    value = add_orthogonality_gradient(adapters, 0.7)
    torch.testing.assert_close(value.double(), by_definition(adapters), rtol=1e-5, atol=0)
    for factor, gradient in zip(factors, expected, strict=True):
        torch.testing.assert_close(factor.grad, gradient, rtol=1e-4, atol=1e-6)


def test_where_c_is_fixed_the_size_stays_in_B() -> None:
    adapters = layers()
    for layer in adapters:
        layer.lora_c.requires_grad_(False)
    factors = [layer.lora_A for layer in adapters]
    expected = torch.autograd.grad(0.7 * by_definition(adapters), factors)
    value = add_orthogonality_gradient(adapters, 0.7)
    torch.testing.assert_close(value.double(), by_definition(adapters), rtol=1e-5, atol=0)
    for factor, gradient in zip(factors, expected, strict=True):
        torch.testing.assert_close(factor.grad, gradient, rtol=1e-4, atol=1e-6)
    assert all(layer.lora_B.grad is None for layer in adapters)


@pytest.mark.parametrize("trains_c", [True, False])
def test_a_cut_to_the_kept_components_changes_nothing(trains_c: bool) -> None:
    whole, cut = nn.ModuleList(layers()), nn.ModuleList(layers())
    for layer in (*whole, *cut):
        layer.lora_c.requires_grad_(trains_c)
    cut_to_kept(cut)
    values = [add_orthogonality_gradient(list(model), 0.5) for model in (whole, cut)]
    torch.testing.assert_close(values[0], values[1])
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one.lora_A.grad[one.mask], other.lora_A.grad)


def test_it_is_added_to_what_is_there_times_the_scalers_factor() -> None:
    plain, scaled = layers(), layers()
    add_orthogonality_gradient(plain, 0.5)
    for layer in scaled:
        layer.lora_A.grad = torch.ones_like(layer.lora_A)
    add_orthogonality_gradient(scaled, 0.5, grad_scale=torch.tensor(8.0))
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(1 + 8 * one.lora_A.grad, other.lora_A.grad)
        torch.testing.assert_close(8 * one.lora_B.grad, other.lora_B.grad)


def test_the_value_is_pefts() -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(6, 9)

        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(loss=(self.a(x).sum() + self.b(x).sum()) * 0)

    settings = {"init_r": 3, "target_r": 2, "orth_reg_weight": 0.5}
    config = peft.AdaLoraConfig(total_step=9, target_modules=["a", "b"], **settings)
    model = peft.get_peft_model(WithLoss(), config)
    theirs = model.base_model(torch.ones(2, 6)).loss  # its own forward adds it
    ours = []
    for name in ("a", "b"):
        triplets = getattr(model.base_model.model, name)
        own = DoRALinear(nn.Linear(6, triplets.out_features), 3)
        own.lora_A.data.copy_(triplets.lora_A["default"])
        own.lora_B.data.copy_(triplets.lora_B["default"])
        ours.append(own)
    value = add_orthogonality_gradient(ours, 0.5)
    assert theirs.item() == pytest.approx(0.5 * value.item(), rel=1e-5)


def test_descent_leads_to_directions_of_length_one_at_right_angles() -> None:
    torch.manual_seed(0)
    layer = DoRALinear(nn.Linear(8, 7), 3)
    optimizer = torch.optim.SGD([layer.lora_A, layer.lora_B], lr=1.0)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 400)
        optimizer.zero_grad()
        add_orthogonality_gradient([layer], 1.0)
        optimizer.step()
    for rows in (layer.lora_A, layer.lora_B.T):
        torch.testing.assert_close(rows @ rows.T, torch.eye(3), atol=2e-2, rtol=0)


def test_orthonormal_factors_and_empty_layers_have_no_gradient() -> None:
    layer = DoRALinear(nn.Linear(8, 8), 2)
    with torch.no_grad():
        layer.lora_A.copy_(torch.eye(8)[:2])
        layer.lora_B.copy_(torch.eye(8)[:, :2])
    assert add_orthogonality_gradient([layer], 1.0) == 0
    assert not layer.lora_A.grad.any()
    empty = DoRALinear(nn.Linear(8, 8), 1)
    empty.lora_A = nn.Parameter(torch.empty(0, 8))
    empty.lora_B = nn.Parameter(torch.empty(8, 0))
    assert add_orthogonality_gradient([empty], 1.0) == 0
    with pytest.raises(ValueError, match="layer"):
        add_orthogonality_gradient([], 1.0)
