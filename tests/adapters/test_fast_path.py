"""The fast form of the layer against its plain form, and when it stands back."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from dynarank.adapters import fast_path
from dynarank.adapters.layer import DoRALinear

D_IN, D_OUT, R = 6, 5, 3
BASES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(D_IN, D_OUT),
    "linear-no-bias": lambda: nn.Linear(D_IN, D_OUT, bias=False),
    "conv1d": lambda: Conv1D(D_OUT, D_IN),
}
FACTORS = ("lora_A", "lora_B", "lora_c")


def layer(base: str = "linear", dropout: float = 0.0, masked: bool = False) -> DoRALinear:
    torch.manual_seed(0)
    made = DoRALinear(BASES[base](), r=R, dropout=dropout)
    nn.init.normal_(made.lora_c)
    if masked:
        made.mask[1] = False
    return made


class GivenMask(nn.Module):
    """Dropout with a given mask, for the plain form."""

    def __init__(self, keep: Tensor, share: float) -> None:
        super().__init__()
        self.keep = keep
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return x * self.keep.view(x.shape) / self.share


def plain_twin(made: DoRALinear, keep: Tensor | None = None, share: float = 1.0) -> DoRALinear:
    twin = copy.deepcopy(made)
    if keep is not None:
        twin.dropout = GivenMask(keep, share)
    return twin


def pickled(made: DoRALinear) -> DoRALinear:
    """Return a copy that went through a file's bytes."""
    buffer = io.BytesIO()
    torch.save(made, buffer)
    buffer.seek(0)
    loaded: DoRALinear = torch.load(buffer, weights_only=False)
    return loaded


def gradients(made: DoRALinear, x: Tensor, forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Return the output and the gradients of a loss: of x, A, B and c."""
    made.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = forward(x)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    (y.float() * weights + y.float().square()).sum().backward()
    return [y.detach(), x.grad, *(getattr(made, name).grad for name in FACTORS)]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each forward pass of the fast form."""
    calls: list[bool] = []
    original = fast_path.forward

    def record(*args: Any) -> Tensor:
        calls.append(True)
        return original(*args)

    monkeypatch.setattr(fast_path, "forward", record)
    return calls


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("base", list(BASES))
def test_equals_the_plain_form(
    base: str, dropout: float, masked: bool, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = layer(base, dropout, masked).double()
    x = torch.randn(2, 7, D_IN, dtype=torch.float64)
    keep, share = None, 1.0
    if dropout:
        keep, share = fast_path.draw_keep_mask(x.view(-1, D_IN), dropout)
        monkeypatch.setattr(fast_path, "draw_keep_mask", lambda *_: (keep, share))
    twin = plain_twin(made, keep, share)
    results = gradients(made, x, made)
    assert taken
    expected = gradients(twin, x, twin.plain_forward)
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-10, atol=1e-10)
    if masked:
        assert not made.lora_A.grad[1].any()
        assert not made.lora_B.grad[:, 1].any()
        assert made.lora_c.grad[1] == 0


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
def test_torchs_own_dropout_gives_the_plain_form_too(
    masked: bool, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerators take it: the dropped input comes scaled, beside its mask."""
    made = layer("linear", 0.4, masked).double()
    x = torch.randn(2, 7, D_IN, dtype=torch.float64)
    monkeypatch.setattr(fast_path, "draws_cheap_bits", lambda x: False)
    drawn: list[torch.Tensor] = []
    one_kernel = fast_path.drop_in_one_kernel

    def draw(x: torch.Tensor, p: float) -> tuple[torch.Tensor, torch.Tensor]:
        dropped, keep = one_kernel(x, p)
        drawn.append(keep)
        return dropped, keep

    monkeypatch.setattr(fast_path, "drop_in_one_kernel", draw)
    results = gradients(made, x, made)
    assert taken
    twin = plain_twin(made, drawn[0], 0.6)
    expected = gradients(twin, x, twin.plain_forward)
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_every_dtype_is_as_near_as_its_rounding(
    dtype: torch.dtype, autocast: bool, taken: list[bool]
) -> None:
    made = layer()
    if autocast and dtype == torch.float32:
        pytest.skip("autocast to float32 is no autocast")
    x = torch.randn(4, D_IN)
    if not autocast:
        made, x = made.to(dtype), x.to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        results = gradients(made, x, made)
        assert taken
        expected = gradients(made, x, made.plain_forward)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for result, reference in zip(results, expected, strict=True):
        assert result.dtype == reference.dtype
        scale = float(reference.abs().max())
        torch.testing.assert_close(result, reference, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
def test_gradcheck_of_first_and_second_derivatives(
    masked: bool, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = layer(dropout=0.4, masked=masked).double()
    given = fast_path.draw_keep_mask(torch.zeros(4, D_IN), 0.4)
    monkeypatch.setattr(fast_path, "draw_keep_mask", lambda *_: given)

    def output(x: Tensor, *factors: Tensor) -> Tensor:
        values = dict(zip(FACTORS, factors, strict=True))
        return torch.func.functional_call(made, values, x)

    x = torch.randn(4, D_IN, dtype=torch.float64, requires_grad=True)
    factors = [getattr(made, name).detach().clone().requires_grad_() for name in FACTORS]
    assert torch.autograd.gradcheck(output, (x, *factors))
    assert torch.autograd.gradgradcheck(output, (x, *factors))
    assert taken


def test_inputs_that_are_not_contiguous(taken: list[bool]) -> None:
    made = layer().double()
    transposed = torch.randn(D_IN, 4, dtype=torch.float64)
    batched = torch.randn(3, D_IN, 4, dtype=torch.float64)
    for x in (transposed.T, batched.mT, transposed.T[::2]):
        results = gradients(made, x, made)
        expected = gradients(made, x, made.plain_forward)
        for result, reference in zip(results, expected, strict=True):
            torch.testing.assert_close(result, reference)
    expanded = torch.randn(1, D_IN, dtype=torch.float64).expand(4, D_IN)
    torch.testing.assert_close(made(expanded), made.plain_forward(expanded))
    assert len(taken) == 4


@pytest.mark.parametrize("kind", ["linear", "linear-no-bias", "conv1d"])
@pytest.mark.parametrize(
    "shape", [(4, D_IN), (2, 3, D_IN), (1, 3, D_IN)], ids=["rows", "batch", "one row"]
)
def test_an_output_and_its_views_may_be_changed_in_place(
    kind: str, shape: tuple[int, ...], taken: list[bool]
) -> None:
    """As DeBERTa does, which scales the heads of a projection in place."""
    made = layer(kind).double()
    x = torch.randn(*shape, dtype=torch.float64)
    results = gradients(made, x, lambda x: made(x).transpose(0, -1).mul_(2))
    expected = gradients(made, x, lambda x: 2 * made.plain_forward(x).transpose(0, -1))
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference)
    assert taken


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_activations_draw_the_same_dropout(
    use_reentrant: bool, taken: list[bool]
) -> None:
    """The reentrant kind runs the first pass without gradients, and the second with them."""
    made = layer(dropout=0.5).train()
    x = torch.randn(4, D_IN)
    torch.manual_seed(5)
    expected = gradients(made, x, made)
    torch.manual_seed(5)
    results = gradients(made, x, lambda x: checkpoint(made, x, use_reentrant=use_reentrant))
    assert len(taken) == 3
    assert all(map(torch.equal, results, expected))


def test_frozen_factors_and_inputs_get_no_gradient() -> None:
    made = layer()
    made.lora_A.requires_grad_(False)
    x = torch.randn(4, D_IN)
    made(x).sum().backward()
    assert made.lora_A.grad is None
    assert made.lora_B.grad is not None
    assert made.lora_c.grad is not None


def test_a_mask_that_changes_is_seen(taken: list[bool]) -> None:
    made = layer()
    x = torch.randn(4, D_IN)
    made(x)
    for change in (
        lambda: made.mask.logical_and_(torch.tensor([True, False, True])),
        lambda: made.load_state_dict({**made.state_dict(), "mask": torch.tensor([False] * R)}),
        lambda: made.mask.fill_(True),
    ):
        change()
        torch.testing.assert_close(made(x), made.plain_forward(x))
    assert len(taken) == 4


@pytest.mark.parametrize("as_copy", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_a_mask_that_changes_in_a_copy_is_seen(
    as_copy: Callable[[DoRALinear], DoRALinear], taken: list[bool]
) -> None:
    """A copy's mask counts its changes anew, and may come to the number that was read before."""
    made = layer()
    x = torch.randn(4, D_IN)
    for changes in range(4):
        made(x)
        copied = as_copy(made)
        copied.load_state_dict({**made.state_dict(), "mask": torch.tensor([True, False, True])})
        torch.testing.assert_close(copied(x), copied.plain_forward(x), msg=f"{changes} changes")
        made.load_state_dict(made.state_dict())
    assert taken


def test_dropout_leaves_the_mean_of_the_output() -> None:
    made = layer(dropout=0.3).train()
    x = torch.randn(1, D_IN).expand(20_000, D_IN).contiguous()
    mean = made(x).detach().double().mean(0)
    torch.testing.assert_close(mean, made.eval()(x)[0].detach().double(), rtol=0.05, atol=0.05)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def unfreeze(made: DoRALinear) -> None:
    made.base.weight.requires_grad_(True)


def subclass(made: DoRALinear) -> None:
    made.base = Doubled(D_IN, D_OUT).requires_grad_(False)


def hook(made: DoRALinear) -> None:
    made.base.register_forward_hook(lambda module, args, y: y + 1)


def replace_forward(made: DoRALinear) -> None:
    original = made.base.forward
    made.base.forward = lambda x: original(x) + 1


def replace_dropout(made: DoRALinear) -> None:
    made.dropout = nn.Identity()


@pytest.mark.parametrize(
    "change", [unfreeze, subclass, hook, replace_forward, replace_dropout], ids=lambda f: f.__name__
)
def test_stands_back_for_what_it_does_not_know(
    change: Callable[[DoRALinear], None], taken: list[bool]
) -> None:
    made = layer()
    change(made)
    x = torch.randn(4, D_IN)
    assert torch.equal(made(x), made.plain_forward(x))
    with torch.no_grad():
        assert torch.equal(made(x), made.plain_forward(x))
    assert not taken


def test_stands_back_for_functional_transforms_and_inference(taken: list[bool]) -> None:
    made = layer()
    x = torch.randn(4, D_IN)
    expected = made.plain_forward(x).detach()
    torch.testing.assert_close(torch.func.vmap(made)(x.view(2, 2, D_IN)).view(4, D_OUT), expected)
    _, tangent = torch.func.jvp(made, (x,), (x,))
    assert tangent.shape == expected.shape
    with torch.no_grad():
        made(x)
    with torch.inference_mode():
        made(x)
    assert not taken


def test_compiles_to_the_same_outputs(taken: list[bool]) -> None:
    made = layer()
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    x = torch.randn(4, D_IN)
    results = gradients(made, x, compiled)
    assert not taken
    for result, reference in zip(results, gradients(made, x, made), strict=True):
        torch.testing.assert_close(result, reference)


def test_keeps_little_for_the_backward_pass() -> None:
    made = DoRALinear(nn.Linear(64, 64), r=2, dropout=0.1)
    x = torch.randn(32, 64, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made(x)
    for shared in (x, *made.parameters()):
        kept.pop(shared.untyped_storage().data_ptr(), None)
    # A byte an element, the mask's last two words, h (2, 32) and B diag(c) (64, 2).
    assert sum(kept.values()) <= x.numel() + 16 + 4 * (2 * 32 + 64 * 2)


def test_a_trace_holds_for_inputs_of_other_sizes() -> None:
    """The input's sizes are not asked for while one is recorded, and so not fixed by it."""
    made = layer("linear", 0.0, True).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(made, torch.randn(2, D_IN))
    x = torch.randn(3, 5, D_IN)
    torch.testing.assert_close(traced(x), made(x))
