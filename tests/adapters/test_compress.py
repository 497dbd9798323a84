"""Compressing an adapter, against a dense singular value decomposition of every layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dynarank.adapters.compress import compress

SHAPES = {"a": (10, 6, 4), "b": (7, 12, 3), "c": (9, 9, 5)}
"""d_in, d_out and k by layer."""


def random_factors(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for index, (name, (d_in, d_out, k)) in enumerate(SHAPES.items()):
        lora_A = torch.randn(k, d_in, generator=generator)
        lora_B = torch.randn(d_out, k, generator=generator) * (index + 1)
        factors[name] = (lora_A, lora_B)
    return factors


def update(factors: tuple[Tensor, Tensor]) -> Tensor:
    return factors[1].double() @ factors[0].double()


def truncated(dense: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(dense)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


@pytest.mark.parametrize("target", [1, 1.5, 3, 4])
def test_the_best_of_all_layers_are_kept(target: float) -> None:
    factors = random_factors()
    smaller = compress(factors, target=target)
    squares = []
    for name, pair in factors.items():
        values = torch.linalg.svdvals(update(pair))[: SHAPES[name][2]]
        squares += [(float(value) ** 2, name) for value in values]
    count = int(3 * target + 0.5)  # halves up, as every budget
    expected = [name for _, name in sorted(squares, reverse=True)[:count]]
    for name, pair in factors.items():
        rank = expected.count(name)
        lora_A, lora_B = smaller.factors[name]
        assert lora_A.shape == (rank, SHAPES[name][0])
        assert lora_B.shape == (SHAPES[name][1], rank)
        torch.testing.assert_close(
            update((lora_A, lora_B)), truncated(update(pair), rank), atol=2e-5, rtol=1e-5
        )
    total = sum(square for square, _ in squares)
    kept = sum(square for square, _ in sorted(squares, reverse=True)[:count])
    assert smaller.lost == pytest.approx(1 - kept / total, abs=1e-12)


def test_each_layer_keeps_its_own_share_when_told() -> None:
    smaller = compress(random_factors(), target=2, per_layer=True)
    assert [layer.rank_after for layer in smaller.layers.values()] == [2, 2, 2]


@pytest.mark.parametrize("parameters", [1, 20, 57, 100, 10_000])
def test_a_number_of_parameters_is_never_exceeded(parameters: int) -> None:
    factors = random_factors()
    smaller = compress(factors, parameters=parameters)
    stored = sum(A.numel() + B.numel() for A, B in smaller.factors.values())
    assert stored == smaller.parameters <= parameters
    if parameters == 10_000:
        assert smaller.lost == pytest.approx(0, abs=1e-12)


def test_a_component_that_does_not_fit_keeps_no_other_from_being_kept() -> None:
    draw = torch.Generator().manual_seed(0)
    wide = torch.randn(2, 60, generator=draw), 100 * torch.randn(40, 2, generator=draw)
    narrow = torch.randn(2, 6, generator=draw), torch.randn(4, 2, generator=draw)
    factors = {"wide": wide, "narrow": narrow}
    kept = {}
    for parameters in (10, 99, 119, 120, 219):
        smaller = compress(factors, parameters=parameters)
        kept[parameters] = tuple(layer.rank_after for layer in smaller.layers.values())
    # A wide component takes 100, a narrow one 10, and the wide ones explain more for each.
    assert kept == {10: (0, 1), 99: (0, 2), 119: (1, 1), 120: (1, 2), 219: (2, 1)}


def test_a_narrow_component_makes_way_where_a_wide_one_then_fits() -> None:
    """The narrow ones explain more for each parameter, and leave room for nearly a wide one."""
    wide = torch.eye(1, 60) * 3, torch.eye(40, 1)
    narrow = torch.eye(2, 6), torch.eye(4, 2)
    smaller = compress({"wide": wide, "narrow": narrow}, parameters=115)
    assert [layer.rank_after for layer in smaller.layers.values()] == [1, 1]
    assert smaller.lost == pytest.approx(1 / 11)


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999, 1.0])
def test_the_energy_asked_for_stays_and_one_component_less_would_not_do(energy: float) -> None:
    factors = random_factors()
    smaller = compress(factors, energy=energy)
    assert 1 - smaller.lost >= energy - 1e-12
    count = sum(layer.rank_after for layer in smaller.layers.values())
    if count > 1:
        fewer = compress(factors, target=(count - 1) / 3)
        assert 1 - fewer.lost < energy


def test_a_samples_inputs_decide_what_matters() -> None:
    """The error on the sample's outputs is that of the dense truncation of D X, for every rank."""
    lora_A, lora_B = random_factors(3)["a"]
    inputs = torch.randn(50, 10, generator=torch.Generator().manual_seed(1)).double()
    inputs[:, :5] *= 20  # so that half of the inputs count for nearly all
    hidden = inputs @ lora_A.double().T
    moment = hidden.T @ hidden / len(inputs)
    for rank in (1, 2, 3):
        smaller = compress({"a": (lora_A, lora_B)}, target=rank, moments={"a": moment})
        outputs = inputs @ update((lora_A, lora_B)).T
        error = (inputs @ update(smaller.factors["a"]).T - outputs).norm()
        best = (truncated(outputs, rank) - outputs).norm()
        assert float(error) == pytest.approx(float(best), rel=1e-4)
        plain = compress({"a": (lora_A, lora_B)}, target=rank)
        assert (
            float((inputs @ update(plain.factors["a"]).T - outputs).norm()) >= float(best) * 0.9999
        )


def test_components_that_are_copies_or_zero_cost_nothing() -> None:
    lora_A, lora_B = random_factors()["a"]
    doubled = (
        torch.cat([lora_A, lora_A, torch.zeros(2, 10)]),
        torch.cat([lora_B, lora_B, torch.ones(6, 2)], 1),
    )
    smaller = compress({"a": doubled}, energy=1 - 1e-10)
    assert smaller.layers["a"].rank_after == 4
    torch.testing.assert_close(
        update(smaller.factors["a"]), 2 * update((lora_A, lora_B)), atol=1e-4, rtol=1e-4
    )


def test_more_components_than_inputs_or_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = (torch.randn(9, 4, generator=generator), torch.randn(5, 9, generator=generator))
    smaller = compress({"w": wide}, target=9)
    assert smaller.layers["w"].rank_after == 4
    torch.testing.assert_close(update(smaller.factors["w"]), update(wide), atol=1e-5, rtol=1e-5)


def test_an_adapter_that_does_nothing_becomes_one_without_components() -> None:
    smaller = compress({"a": (torch.randn(3, 5), torch.zeros(4, 3))}, target=2)
    assert smaller.layers["a"].rank_after == 0
    assert smaller.lost == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no size given"),
        ({"target": 1, "energy": 0.5}, "exactly one"),
        ({"target": 0}, "target = 0"),
        ({"target": float("nan")}, "target = nan"),
        ({"energy": 1.5}, "energy = 1.5"),
        ({"parameters": 0}, "parameters = 0"),
        ({"parameters": 5, "per_layer": True}, "per_layer"),
    ],
)
def test_sizes_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress(random_factors(), **options)


def test_factors_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"a: lora_A \(3, 5\) and lora_B \(4, 2\)"):
        compress({"a": (torch.randn(3, 5), torch.randn(4, 2))}, target=1)
    with pytest.raises(ValueError, match="not finite"):
        compress({"a": (torch.full((2, 5), torch.nan), torch.randn(4, 2))}, target=1)
    with pytest.raises(ValueError, match="no layers"):
        compress({}, target=1)
