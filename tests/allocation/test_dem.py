from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dynarank.adapters.layer import DoRALinear
from dynarank.allocation.dem import add_dem_gradient, dem_penalty

SHAPES = [(3, 6, 5), (2, 6, 5), (3, 6, 5), (4, 5, 6), (1, 4, 4), (3, 1, 7), (2, 7, 1)]


def layers(
    shapes: list[tuple[int, int, int]], spread: float = 1.0, offset: float = 0.0
) -> list[DoRALinear]:
    """Adapters of (r, d_in, d_out) with normal elements."""
    torch.manual_seed(0)
    made = [DoRALinear(nn.Linear(d_in, d_out), r) for r, d_in, d_out in shapes]
    for layer in made:
        for parameter in (layer.lora_A, layer.lora_B):
            nn.init.normal_(parameter, offset, spread)
    return made


def variance(vector: Tensor) -> Tensor:
    return (
        torch.var(vector.double(), correction=1) if len(vector) > 1 else 0.0 * vector.double().sum()
    )


def equation_10(adapters: list[DoRALinear]) -> Tensor:
    """Vector by vector, float64."""
    terms = [
        variance(layer.lora_A[i]) + variance(layer.lora_B[:, i])
        for layer in adapters
        for i in range(layer.r)
    ]
    return sum(terms, torch.zeros((), dtype=torch.float64)) / len(terms)


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:1], SHAPES[:3], SHAPES[4:]], ids=len)
def test_equals_the_formula_vector_by_vector(shapes: list[tuple[int, int, int]]) -> None:
    adapters = layers(shapes)
    penalty = dem_penalty(adapters)
    assert penalty.shape == ()
    assert penalty.dtype == torch.float32
    torch.testing.assert_close(penalty.double(), equation_10(adapters), rtol=1e-5, atol=0)


def test_a_large_mean_does_not_drown_the_variance() -> None:
    adapters = layers(SHAPES[:3], spread=0.01, offset=10.0)
    torch.testing.assert_close(
        dem_penalty(adapters).double(), equation_10(adapters), rtol=1e-3, atol=0
    )


def test_gradient_is_that_of_the_formula() -> None:
    adapters = layers(SHAPES)
    parameters = [p for layer in adapters for p in (layer.lora_A, layer.lora_B)]
    expected = torch.autograd.grad(equation_10(adapters), parameters)
    gradients = torch.autograd.grad(dem_penalty(adapters), parameters, materialize_grads=True)
    assert all(gradient.any() for gradient in gradients[:10])
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-7)


def test_c_does_not_enter() -> None:
    [layer] = layers(SHAPES[:1])
    before = dem_penalty([layer]).detach()
    nn.init.ones_(layer.lora_c)
    assert torch.equal(dem_penalty([layer]).detach(), before)


def test_vectors_of_one_element_count_zero() -> None:
    assert dem_penalty(layers([(2, 1, 1)])) == 0
    [column] = layers([(2, 1, 6)])
    expected = torch.var(column.lora_B.double(), dim=0).mean()
    torch.testing.assert_close(dem_penalty([column]).double(), expected, rtol=1e-5, atol=0)


def test_constant_vectors_cost_nothing() -> None:
    [layer] = layers(SHAPES[:1])
    nn.init.constant_(layer.lora_A, 3.0)
    nn.init.constant_(layer.lora_B, -2.0)
    assert dem_penalty([layer]) == 0


def test_is_float32_under_autocast() -> None:
    adapters = layers(SHAPES)
    expected = dem_penalty(adapters)
    with torch.autocast("cpu", torch.bfloat16):
        penalty = dem_penalty(adapters)
    assert penalty.dtype == torch.float32
    assert torch.equal(penalty, expected)


def test_is_float32_in_a_bfloat16_model() -> None:
    adapters = layers(SHAPES)
    expected = dem_penalty(adapters)
    assert torch.equal(dem_penalty([layer.bfloat16() for layer in adapters]), expected)


def test_no_layers_is_an_error() -> None:
    with pytest.raises(ValueError, match="no adapted layers"):
        dem_penalty([])


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:1], SHAPES[4:]], ids=len)
@pytest.mark.parametrize("chunk", [1, 40, 2**20])
def test_the_closed_form_is_autograds_gradient_and_value(
    shapes: list[tuple[int, int, int]], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynarank.allocation.grouping.STACK_ELEMENTS", chunk)
    reference, adapters = layers(shapes), layers(shapes)
    parameters = [p for layer in adapters for p in (layer.lora_A, layer.lora_B)]
    expected = [p for layer in reference for p in (layer.lora_A, layer.lora_B)]
    before = [p.detach().clone() for p in parameters]
    for own, other in zip(parameters, expected, strict=True):
        own.grad = torch.ones_like(own)
        other.grad = torch.ones_like(other)
    penalty = dem_penalty(reference)
    (0.7 * penalty).backward()
    value = add_dem_gradient(adapters, 0.7)
    torch.testing.assert_close(value, penalty.detach(), rtol=1e-6, atol=1e-7)
    for own, other, old in zip(parameters, expected, before, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-6, atol=1e-6)
        assert torch.equal(own, old)


def test_the_closed_form_makes_gradients_and_follows_a_scaler() -> None:
    plain, scaled = layers(SHAPES), layers(SHAPES)
    first = add_dem_gradient(plain, 0.5)
    second = add_dem_gradient(scaled, 0.5, grad_scale=torch.tensor(8.0))
    assert torch.equal(first, second)
    for layer, other in zip(plain, scaled, strict=True):
        if layer.in_features > 1:
            torch.testing.assert_close(8 * layer.lora_A.grad, other.lora_A.grad)
        assert layer.lora_c.grad is None
