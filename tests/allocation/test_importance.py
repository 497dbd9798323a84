from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dynarank.adapters.layer import DoRALinear
from dynarank.allocation.importance import importance, layer_importance, smooth


def equation_7(A: Tensor, B: Tensor, c: Tensor, eps: float = 1e-8) -> Tensor:
    """Eq. 7 with every (d_out, d_in) matrix written out, float64."""
    components = [
        c[i].double() * torch.outer(B[:, i].double(), A[i].double()) for i in range(len(c))
    ]
    total = torch.linalg.matrix_norm(torch.stack(components).sum(0))
    return torch.stack(
        [torch.linalg.matrix_norm(component) / (total + eps) for component in components]
    )


def factors(r: int, d_in: int, d_out: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    A, B, c = (torch.randn(shape, generator=draw) for shape in ((r, d_in), (d_out, r), (r,)))
    return A, B, c


def layer(r: int, d_in: int, d_out: int, seed: int = 0) -> DoRALinear:
    adapter = DoRALinear(nn.Linear(d_in, d_out), r)
    with torch.no_grad():
        A, B, c = factors(r, d_in, d_out, seed)
        adapter.lora_A.copy_(A)
        adapter.lora_B.copy_(B)
        adapter.lora_c.copy_(c)
    return adapter


@settings(deadline=None, max_examples=60, database=None)
@given(
    st.integers(1, 8),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 10_000),
    st.floats(-6, 3),
)
def test_equals_the_formula_written_out(
    r: int, d_in: int, d_out: int, seed: int, magnitude: float
) -> None:
    A, B, c = factors(r, d_in, d_out, seed)
    c = c * 10**magnitude
    torch.testing.assert_close(importance(A, B, c).double(), equation_7(A, B, c), rtol=1e-5, atol=0)


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3, 1e-4])
def test_components_that_nearly_cancel(gap: float) -> None:
    A, B, _ = factors(3, 6, 5)
    A[1] = A[0] + gap * torch.ones(6)
    B[:, 1] = B[:, 0]
    c = torch.tensor([1.0, -1.0, 0.0])
    scores = importance(A, B, c)
    assert scores[0] > 1 / gap / 10
    torch.testing.assert_close(scores.double(), equation_7(A, B, c), rtol=1e-5, atol=0)


@pytest.mark.parametrize("r", [4, 16])
@pytest.mark.parametrize("power", range(7))
def test_components_that_cancel_to_a_millionth(power: int, r: int) -> None:
    """Two large components cancel to 10^-power of their norm, in a layer of usual width."""
    A, B, c = factors(r, 256, 192)
    A[1] = A[0] + 10.0**-power * A[1]
    B[:, 1] = B[:, 0]
    c[:2] = torch.tensor([1.0, -1.0])
    c[2:] *= 10.0**-power
    pairs = zip((A, B, c), factors(r, 256, 192), strict=True)
    scores = importance(*(torch.stack(pair) for pair in pairs))
    # At a millionth, float64 itself leaves three to four digits of the sum's norm.
    rtol = 1e-5 if power < 6 else 1e-3
    torch.testing.assert_close(scores[0].double(), equation_7(A, B, c), rtol=rtol, atol=0)


def test_components_that_cancel_exactly_have_finite_scores() -> None:
    A, B, _ = factors(2, 6, 5)
    scores = importance(A[[0, 0]], B[:, [0, 0]], torch.tensor([1.0, -1.0]))
    assert scores.isfinite().all()
    assert (scores > 1e6).all()


def test_a_lone_component_is_all_of_its_layer() -> None:
    assert importance(*factors(1, 6, 5)).item() == pytest.approx(1)


def test_orthogonal_components_share_like_the_sides_of_a_box() -> None:
    eye = torch.eye(4)
    torch.testing.assert_close(
        importance(eye, eye, torch.tensor([2.0, -2.0, 1.0, 0.0])), torch.tensor([2, 2, 1, 0]) / 3
    )


def test_zero_coefficients_score_zero() -> None:
    A, B, c = factors(4, 6, 5)
    assert torch.equal(importance(A, B, torch.zeros(4)), torch.zeros(4))
    c[2] = 0
    assert importance(A, B, c)[2] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_eps_counts_in_every_precision(dtype: torch.dtype) -> None:
    one = torch.ones(1, 1, dtype=dtype)
    assert importance(one, one, torch.tensor([1e-8])).item() == pytest.approx(0.5)
    assert importance(one, one, torch.ones(1, dtype=dtype), eps=1.0).item() == pytest.approx(0.5)


@settings(deadline=None, max_examples=25, database=None)
@given(st.integers(1, 6), st.integers(0, 10_000), st.floats(0.01, 1000), st.sampled_from([-1, 1]))
def test_a_common_factor_of_c_divides_out(r: int, seed: int, factor: float, sign: int) -> None:
    A, B, c = factors(r, 7, 5, seed)
    torch.testing.assert_close(
        importance(A, B, sign * factor * c), importance(A, B, c), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
def test_scores_are_float32_and_exact_for_the_given_values(dtype: torch.dtype) -> None:
    A, B, c = (tensor.to(dtype) for tensor in factors(4, 6, 5))
    scores = importance(A, B, c)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), equation_7(A, B, c), rtol=1e-5, atol=0)


def test_leading_dimensions_batch_layers() -> None:
    several = [factors(3, 6, 5, seed) for seed in range(4)]
    A, B, c = (torch.stack(tensors).unflatten(0, (2, 2)) for tensors in zip(*several, strict=True))
    alone = torch.stack([importance(*one) for one in several])
    torch.testing.assert_close(importance(A, B, c), alone.reshape(2, 2, 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_non_finite_factors_show(bad: float, which: int) -> None:
    tensors = factors(3, 6, 5)
    tensors[which].view(-1)[0] = bad
    assert not importance(*tensors).isfinite().all()


class LargestResult(TorchDispatchMode):
    """Remembers the largest number of elements that an operation gave back."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_forms_no_matrix_of_the_layers_size() -> None:
    tensors = factors(3, 50, 40)
    with LargestResult() as largest:
        importance(*tensors)
    assert 0 < largest.numel < 50 * 40 / 4


def test_layers_of_mixed_shapes_are_scored_in_their_order() -> None:
    shapes = [(3, 6, 5), (2, 6, 5), (3, 6, 5), (3, 5, 6), (1, 4, 4), (3, 6, 5)]
    layers = [layer(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    scores = layer_importance(layers)
    assert [score.shape for score in scores] == [(shape[0],) for shape in shapes]
    for score, adapter in zip(scores, layers, strict=True):
        expected = equation_7(
            adapter.lora_A.detach(), adapter.lora_B.detach(), adapter.lora_c.detach()
        )
        torch.testing.assert_close(score.double(), expected, rtol=1e-5, atol=0)
        assert not score.requires_grad
        assert score.dtype == torch.float32


def test_masked_components_do_not_count() -> None:
    adapter = layer(4, 6, 5)
    adapter.mask[1] = False
    A, B, c = adapter.lora_A.detach(), adapter.lora_B.detach(), adapter.lora_c.detach()
    [scores] = layer_importance([adapter])
    assert scores[1] == 0
    left = [0, 2, 3]
    torch.testing.assert_close(
        scores[left].double(), equation_7(A[left], B[:, left], c[left]), rtol=1e-5, atol=0
    )


def test_scores_of_a_bfloat16_model_are_those_of_its_float32_adapters() -> None:
    adapter = layer(4, 6, 5)
    [before] = layer_importance([adapter])
    [after] = layer_importance([adapter.bfloat16()])
    assert torch.equal(before, after)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_smoothing_is_a_weighted_sum_of_the_past(beta: float) -> None:
    scores = torch.rand(6, 4, dtype=torch.float64)
    ema = torch.zeros(4, dtype=torch.float64)
    for score in scores:
        ema = smooth(ema, score, beta)
    weights = torch.tensor(
        [(1 - beta) * beta**age for age in range(5, -1, -1)], dtype=torch.float64
    )
    torch.testing.assert_close(ema, (weights[:, None] * scores).sum(0))
