from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dynarank.adapters.layer import DoRALinear, is_linear, linear_shape

Base = Callable[[int, int], nn.Module]
BASES: dict[str, Base] = {
    "linear": nn.Linear,
    "linear-no-bias": partial(nn.Linear, bias=False),
    "conv1d": lambda d_in, d_out: Conv1D(d_out, d_in),
}
ADAPTER = ("lora_A", "lora_B", "lora_c")


@pytest.fixture(params=BASES.values(), ids=list(BASES))
def base(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param(5, 7)


def trained(layer: DoRALinear, seed: int = 1) -> DoRALinear:
    """The layer with nonzero c, as after some optimizer steps."""
    draw = torch.rand(layer.r, generator=torch.Generator().manual_seed(seed)) - 0.5
    with torch.no_grad():
        layer.lora_c.copy_(2 * draw + draw.sign())
    return layer


def dense_weight(base: nn.Module) -> tuple[Tensor, Tensor | float]:
    """(d_out, d_in) weight and bias of either kind of base, float64."""
    weight = base.weight.double()
    return weight if isinstance(
        base, nn.Linear
    ) else weight.T, 0.0 if base.bias is None else base.bias.double()


def equation_6(layer: DoRALinear, x: Tensor, s: float) -> Tensor:
    """Return W0 x + s sum_i c_i b_i (a_i^T x), a component and a vector at a time, in float64."""
    weight, bias = dense_weight(layer.base)
    rows = []
    for vector in x.double().reshape(-1, x.shape[-1]):
        y = weight @ vector + bias
        for i in range(layer.r):
            if layer.mask[i]:
                a, b, c = (
                    layer.lora_A[i].double(),
                    layer.lora_B[:, i].double(),
                    layer.lora_c[i].double(),
                )
                y = y + s * c * b * torch.dot(a, vector)
        rows.append(y)
    return torch.stack(rows).reshape(*x.shape[:-1], weight.shape[0])


def test_starts_equal_to_the_base(base: nn.Module) -> None:
    x = torch.randn(3, 5)
    expected = base(x).detach().clone()
    assert torch.equal(DoRALinear(base, r=4, dropout=0.3)(x), expected)


def test_starts_kaiming_uniform_with_zero_c() -> None:
    torch.manual_seed(0)
    layer = DoRALinear(nn.Linear(60, 80), r=16)
    assert not layer.lora_c.any()
    assert layer.mask.all()
    for weight, fan_in in ((layer.lora_A, 60), (layer.lora_B, 16)):
        bound = math.sqrt(6 / fan_in)
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)], ids=str)
def test_output_is_equation_6(base: nn.Module, shape: tuple[int, ...]) -> None:
    layer = trained(DoRALinear(base, r=3, alpha=6.0)).double()
    x = torch.randn(shape, dtype=torch.float64)
    if x.numel() == 0:
        assert layer(x).shape == (0, 7)
    else:
        torch.testing.assert_close(layer(x), equation_6(layer, x, s=2.0), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=20, database=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 6),
    st.floats(0.1, 32),
    st.sampled_from(list(BASES)),
    st.data(),
)
def test_any_shape_and_mask_is_equation_6(
    d_in: int, d_out: int, r: int, alpha: float, kind: str, data: st.DataObject
) -> None:
    torch.manual_seed(0)
    layer = trained(DoRALinear(BASES[kind](d_in, d_out), r, alpha)).double()
    layer.mask.copy_(torch.tensor(data.draw(st.lists(st.booleans(), min_size=r, max_size=r))))
    x = torch.randn(2, d_in, dtype=torch.float64)
    torch.testing.assert_close(layer(x), equation_6(layer, x, alpha / r), rtol=1e-10, atol=1e-10)


def test_delta_weight_is_the_sum_of_the_components(base: nn.Module) -> None:
    layer = trained(DoRALinear(base, r=3, alpha=6.0)).double()
    layer.mask[1] = False
    outer = [
        2.0 * layer.lora_c[i] * torch.outer(layer.lora_B[:, i], layer.lora_A[i]) for i in (0, 2)
    ]
    torch.testing.assert_close(layer.delta_weight(), outer[0] + outer[1], rtol=1e-12, atol=1e-12)


def test_works_on_the_meta_device() -> None:
    layer = DoRALinear(nn.Linear(5, 7, device="meta"), r=2)
    assert {tensor.device.type for tensor in layer.state_dict().values()} == {"meta"}
    assert layer(torch.empty(4, 3, 5, device="meta")).shape == (4, 3, 7)


def test_only_the_adapter_gets_gradients(base: nn.Module) -> None:
    layer = trained(DoRALinear(base, r=3))
    layer(torch.randn(4, 5)).square().sum().backward()
    assert all(not p.requires_grad and p.grad is None for p in layer.base.parameters())
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == set(ADAPTER)
    assert all(getattr(layer, name).grad.abs().min() > 0 for name in ADAPTER)


def test_c_gets_a_gradient_at_the_start() -> None:
    torch.manual_seed(0)
    layer = DoRALinear(nn.Linear(5, 7), r=3)
    layer(torch.randn(4, 5)).square().sum().backward()
    assert layer.lora_c.grad is not None
    assert (layer.lora_c.grad != 0).all()


@pytest.mark.parametrize("mask", [[True, True, True], [True, False, True]], ids=["full", "masked"])
def test_gradcheck(base: nn.Module, mask: list[bool]) -> None:
    layer = trained(DoRALinear(base, r=3)).double()
    layer.mask.copy_(torch.tensor(mask))

    def output(x: Tensor, *adapter: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(ADAPTER, adapter, strict=True)), x)

    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    adapter = [getattr(layer, name).detach().clone().requires_grad_() for name in ADAPTER]
    assert torch.autograd.gradcheck(output, (x, *adapter))


def test_masked_component_is_silent_whatever_its_values(base: nn.Module) -> None:
    layer = trained(DoRALinear(base, r=3))
    x = torch.randn(4, 5)
    layer.mask[1] = False
    expected = layer(x)
    with torch.no_grad():
        layer.lora_A[1], layer.lora_B[:, 1], layer.lora_c[1] = 100.0, -50.0, 3.0
    assert torch.equal(layer(x), expected)
    assert layer.active().tolist() == [True, False, True]


def test_masked_component_gets_exactly_no_gradient(base: nn.Module) -> None:
    layer = trained(DoRALinear(base, r=3))
    layer.mask[1] = False
    layer(torch.randn(4, 5)).square().sum().backward()
    A, B, c = layer.lora_A.grad, layer.lora_B.grad, layer.lora_c.grad
    assert not A[1].any()
    assert not B[:, 1].any()
    assert c[1] == 0
    assert A[[0, 2]].any(dim=1).all()
    assert B[:, [0, 2]].any(dim=0).all()
    assert c[[0, 2]].all()


def test_layer_of_rank_zero_is_the_base(base: nn.Module) -> None:
    x = torch.randn(4, 5)
    expected = base(x).detach().clone()
    layer = trained(DoRALinear(base, r=3))
    layer.mask.fill_(False)
    assert torch.equal(layer(x), expected)
    assert not layer.active().any()


def test_scale_stays_when_components_go() -> None:
    layer = trained(DoRALinear(nn.Linear(5, 7), r=4, alpha=8.0)).double()
    layer.mask[1:3] = False
    with torch.no_grad():
        layer.lora_c[3] = 0
    x = torch.randn(5, dtype=torch.float64)
    left = layer.lora_c[0] * layer.lora_B[:, 0] * (layer.lora_A[0] @ x)
    torch.testing.assert_close(layer(x) - layer.base(x), 2.0 * left)


NARROWINGS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to-bfloat16": lambda m: m.to(torch.bfloat16),
    "to-half-of-a-tensor": lambda m: m.to(torch.empty(0, dtype=torch.float16)),
    "to-device-and-dtype": lambda m: m.to("cpu", torch.bfloat16),
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
}


@pytest.mark.parametrize("narrow", NARROWINGS.values(), ids=list(NARROWINGS))
def test_adapter_stays_float32_bit_by_bit(
    base: nn.Module, narrow: Callable[[nn.Module], nn.Module]
) -> None:
    model = nn.Sequential(trained(DoRALinear(base, r=3)))
    before = {name: getattr(model[0], name).detach().clone() for name in ADAPTER}
    narrow(model)
    for name in ADAPTER:
        assert getattr(model[0], name).dtype == torch.float32
        assert torch.equal(getattr(model[0], name), before[name])
    assert model[0].mask.dtype == torch.bool
    assert all(p.element_size() == 2 for p in model[0].base.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_output_has_the_bases_dtype(base: nn.Module, dtype: torch.dtype) -> None:
    layer = trained(DoRALinear(base, r=3)).to(dtype)
    x = torch.randn(4, 5).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), equation_6(layer, x, s=8 / 3), rtol=0.02, atol=0.1)
    y.float().sum().backward()
    assert all(getattr(layer, name).grad.dtype == torch.float32 for name in ADAPTER)


def test_adapter_of_a_bfloat16_base_is_float32(base: nn.Module) -> None:
    layer = DoRALinear(base.bfloat16(), r=3)
    assert all(getattr(layer, name).dtype == torch.float32 for name in ADAPTER)


def test_double_widens_adapter_and_base(base: nn.Module) -> None:
    layer = trained(DoRALinear(base, r=3))
    before = layer.lora_A.detach().clone()
    layer.double()
    assert all(p.dtype == torch.float64 for p in layer.parameters())
    assert torch.equal(layer.lora_A, before.double())


def test_float_takes_back_what_double_widened(base: nn.Module) -> None:
    """float32 is wide enough, and half of the memory."""
    layer = trained(DoRALinear(base, r=3))
    before = layer.lora_A.detach().clone()
    layer.double().float()
    assert layer.lora_A.dtype == torch.float32
    assert torch.equal(layer.lora_A, before)
    layer.double().half()
    assert layer.lora_A.dtype == torch.float64


def test_dropout_acts_in_training_and_on_the_adapter_alone() -> None:
    torch.manual_seed(0)
    layer = trained(DoRALinear(nn.Linear(50, 7), r=3, dropout=0.5))
    x = torch.randn(4, 50)
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(
        layer(x).double(), equation_6(layer, x, s=8 / 3), rtol=1e-4, atol=1e-4
    )
    layer.train()
    layer.mask.fill_(False)
    assert torch.equal(layer(x), layer.base(x))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"r": 0}, "r = 0"),
        ({"r": -1}, "r = -1"),
        ({"r": 2, "alpha": 0.0}, "alpha = 0"),
        ({"r": 2, "alpha": -1.0}, "alpha = -1"),
        ({"r": 2.5}, "r = 2.5"),
        ({"r": 2, "alpha": math.nan}, "alpha = nan"),
        ({"r": 2, "alpha": math.inf}, "alpha = inf"),
        ({"r": 2, "dropout": 1.0}, "dropout = 1"),
        ({"r": 2, "dropout": -0.1}, "dropout = -0.1"),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict[str, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        DoRALinear(nn.Linear(5, 7), **options)


@pytest.mark.parametrize(
    "module", [nn.Embedding(5, 7), nn.Conv1d(5, 7, 1), nn.Bilinear(2, 3, 4)], ids=repr
)
def test_other_modules_are_refused(module: nn.Module) -> None:
    assert not is_linear(module)
    with pytest.raises(TypeError, match=type(module).__name__):
        DoRALinear(module, r=2)


def test_shape_is_d_in_then_d_out(base: nn.Module) -> None:
    assert is_linear(base)
    assert linear_shape(base) == (5, 7)


def test_state_dict_holds_the_mask_and_round_trips(base: nn.Module) -> None:
    layer = trained(DoRALinear(base, r=3))
    layer.mask[2] = False
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    assert {"mask", *ADAPTER} < set(state)
    kind = (
        nn.Linear(5, 7, bias=base.bias is not None) if isinstance(base, nn.Linear) else Conv1D(7, 5)
    )
    other = DoRALinear(kind, r=3)
    x = torch.randn(4, 5)
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(state)
    assert other.mask.tolist() == [True, True, False]
    assert torch.equal(other(x), layer(x))


def test_an_orthogonal_start_has_unit_directions_and_no_update(base: nn.Module) -> None:
    layer = DoRALinear(base, r=3, start="orthogonal")
    for rows in (layer.lora_A, layer.lora_B.T):
        torch.testing.assert_close(rows @ rows.T, torch.eye(3), atol=1e-6, rtol=0)
    x = torch.randn(2, 5)
    assert torch.equal(layer(x), layer.base(x))
    layer(x).sum().backward()
    assert layer.lora_c.grad.all()  # so that it learns


def test_an_orthogonal_start_of_A_moves_B_in_the_first_step(base: nn.Module) -> None:
    layer = DoRALinear(base, r=3, start="orthogonal_A")
    torch.testing.assert_close(layer.lora_A @ layer.lora_A.T, torch.eye(3), atol=1e-6, rtol=0)
    x = torch.randn(2, 5)
    assert torch.equal(layer(x), layer.base(x))
    layer(x).sum().backward()
    assert layer.lora_B.grad.all()
    assert layer.lora_c.grad is None
    assert layer.lora_c.tolist() == [1, 1, 1]
