"""What a CUDA GPU changes: other kernels, other dropout, nothing waited for, moves between devices.

Each test compares with something made another way: the plain form in float64 on the CPU, a twin on
the CPU, a run that was not stopped.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from dynarank import (
    BudgetSchedule,
    DoRALinear,
    RankAllocator,
    add_dem_gradient,
    compress,
    inject,
)
from dynarank.adapters import fast_path
from dynarank.adapters.peft_format import write_peft_adapter

sys.path.insert(0, str(Path(__file__).parent / "integrations"))
from door_models import MODELS, TARGETS, batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")

DEVICE = "cuda"
FACTORS = ("lora_A", "lora_B", "lora_c")
D_IN, D_OUT, R = 48, 40, 6
BASES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(D_IN, D_OUT),
    "conv1d": lambda: Conv1D(D_OUT, D_IN),
}
# The type of the layer's matrix products, whether autocast makes it so, and the largest error as a
# share of the largest element.
PRECISIONS: dict[str, tuple[torch.dtype, bool, float]] = {
    "float32": (torch.float32, False, 1e-5),
    "bf16 autocast": (torch.bfloat16, True, 0.03),
    "fp16 autocast": (torch.float16, True, 0.005),
    "bf16 base": (torch.bfloat16, False, 0.03),
}


@pytest.fixture(autouse=True)
def exact_float32() -> None:
    """No TF32, whose products have ten bits."""
    torch.set_float32_matmul_precision("highest")


def adapted(base: nn.Module, dropout: float = 0.0, masked: bool = False) -> DoRALinear:
    torch.manual_seed(0)
    made = DoRALinear(base, r=R, dropout=dropout).to(DEVICE)
    nn.init.normal_(made.lora_c)
    if masked:
        made.mask[1] = False
    return made


def gradients(made: DoRALinear, x: Tensor, forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Return the output and the gradients of x, A, B and c, in float64 on the CPU."""
    made.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = forward(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    (y.double() * weights.to(y.device)).sum().backward()
    results = [y.detach(), x.grad, *(getattr(made, name).grad for name in FACTORS)]
    return [result.double().cpu() for result in results]


def check_near(results: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    names = ("output", "x.grad", "A.grad", "B.grad", "c.grad")
    for name, result, reference in zip(names, results, expected, strict=True):
        error = float((result - reference).abs().max() / reference.abs().max())
        assert error <= tolerance, f"{name}: off by {error:.2e} of its largest element"


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_fast_path_equals_the_plain_form_in_float64(
    precision: str, base: str, dropout: float, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype, autocast, tolerance = PRECISIONS[precision]
    made = adapted(BASES[base](), dropout, masked)
    x = torch.randn(3, 17, D_IN, device=DEVICE)
    if not autocast:
        made, x = made.to(dtype), x.to(dtype)
    masks: list[Tensor] = []
    calls: list[bool] = []
    drop, forward = fast_path.drop_in_one_kernel, fast_path.forward

    def drop_and_keep(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
        dropped, keep = drop(x, p)
        masks.append(keep.cpu())
        return dropped, keep

    def count(*arguments: Any) -> Tensor:
        calls.append(True)
        return forward(*arguments)

    monkeypatch.setattr(fast_path, "drop_in_one_kernel", drop_and_keep)
    monkeypatch.setattr(fast_path, "forward", count)
    with torch.autocast(DEVICE, dtype, enabled=autocast):
        results = gradients(made, x, made)
    assert calls, "the fast path was not taken"
    assert len(masks) == (dropout > 0), "the mask was not drawn by torch's dropout kernel"
    twin = copy.deepcopy(made).cpu().double()
    twin.dropout = nn.Identity()
    if dropout:
        scaled = masks[0].view(x.shape) / (1 - dropout)
        twin.dropout.register_forward_hook(lambda module, inputs, output: output * scaled)
    check_near(results, gradients(twin, x.cpu().double(), twin.plain_forward), tolerance)


def test_dropout_keeps_its_share_and_the_outputs_mean() -> None:
    made = adapted(nn.Linear(D_IN, D_OUT), dropout=0.3)
    count = 20_000
    x = torch.randn(1, D_IN, device=DEVICE).expand(count, D_IN).contiguous()
    _, keep = fast_path.drop_in_one_kernel(x, 0.3)
    assert float(keep.double().mean()) == pytest.approx(0.7, abs=0.0025)  # five deviations
    y = made(x).detach().double()
    expected = made.eval()(x)[0].detach().double()
    deviations = (y.mean(0) - expected).abs() / (y.std(0) / count**0.5)
    assert float(deviations.max()) < 6, f"a mean is {float(deviations.max()):.1f} deviations off"


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_draw_the_same_dropout(reentrant: bool) -> None:
    made = adapted(nn.Linear(D_IN, D_OUT), dropout=0.5)
    x = torch.randn(32, D_IN, device=DEVICE)
    torch.manual_seed(5)
    expected = gradients(made, x, made)
    torch.manual_seed(5)
    results = gradients(made, x, lambda x: checkpoint(made, x, use_reentrant=reentrant))
    check_near(results, expected, 1e-6)


def stack(dropout: float = 0.0) -> tuple[nn.Sequential, dict[str, DoRALinear]]:
    """Return a model of three layers of two shapes, on the CPU, and its adapters."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16), nn.Linear(16, 8))
    layers = inject(model, ["0", "2", "3"], r=4, dropout=dropout)
    for layer in layers.values():
        nn.init.normal_(layer.lora_c)
    return model, layers


def factors_of(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if "lora_" in name]


@pytest.mark.parametrize("settings", [{}, {"regrow": False, "cost_aware": True}], ids=str)
@pytest.mark.parametrize("score", ["relative", "absolute", "fisher", "sensitivity"])
def test_an_allocator_chooses_as_on_the_cpu(score: str, settings: dict[str, Any]) -> None:
    """The two change their states halfway, so that each goes on from the other's."""
    model, on_cpu = stack()
    moved = copy.deepcopy(model).to(DEVICE)
    on_gpu = {name: moved.get_submodule(name) for name in on_cpu}
    schedule = BudgetSchedule(init=4, target=2, total=40, warmup=0.1, final=0.5, interval=4)

    def allocators() -> list[RankAllocator]:
        return [RankAllocator(each, schedule, score=score, **settings) for each in (on_cpu, on_gpu)]

    pair = allocators()
    factors = list(zip(factors_of(model), factors_of(moved), strict=True))
    draw = torch.Generator().manual_seed(2)
    for step in range(1, 23):
        for ours, theirs in factors:
            ours.grad = torch.randn(ours.shape, generator=draw)
            theirs.grad = ours.grad.to(DEVICE)
        for allocator in pair:
            allocator.observe()
        penalties = [add_dem_gradient(layers, 0.5) for layers in (on_cpu, on_gpu)]
        torch.testing.assert_close(penalties[1].cpu(), penalties[0], rtol=1e-5, atol=0)
        for ours, theirs in factors:
            torch.testing.assert_close(theirs.grad.cpu(), ours.grad)
            ours.data -= 0.1 * ours.grad
            theirs.data.copy_(ours.data)
        assert pair[0].step() == pair[1].step()
        assert pair[1].ema.device.type == DEVICE
        torch.testing.assert_close(pair[1].ema.cpu(), pair[0].ema, rtol=1e-4, atol=1e-7)
        for name, layer in on_cpu.items():
            same = torch.equal(layer.active(), on_gpu[name].active().cpu())
            assert same, f"step {step}: another choice in layer {name}"
        if step == 10:
            states = [allocator.state_dict() for allocator in pair]
            pair = allocators()
            pair[0].load_state_dict(states[1])
            pair[1].load_state_dict(states[0])
    assert pair[1].frozen
    assert pair[0].ranks() == pair[1].ranks()


@pytest.mark.parametrize("score", ["relative", "absolute", "fisher", "sensitivity"])
def test_an_ordinary_step_does_not_wait_for_the_device(score: str) -> None:
    model, layers = stack(dropout=0.1)
    model.to(DEVICE)
    allocator = RankAllocator(layers, BudgetSchedule(4, 2, total=1000, interval=100), score=score)
    optimizer = torch.optim.AdamW(factors_of(model), lr=1e-3, fused=True)
    allocator.attach(optimizer, eta=0.1)
    x = torch.randn(32, 16, device=DEVICE)

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):  # masks are read once, and kernels are loaded
        step()
    torch.cuda.set_sync_debug_mode("error")  # its error's traceback shows the line that waits
    try:
        step()
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert allocator.t == 5


def test_a_loss_scalers_skipped_step_does_not_count() -> None:
    model, layers = stack()
    model.to(DEVICE)
    allocator = RankAllocator(layers, BudgetSchedule(4, 2, total=1000), score="fisher")
    optimizer = torch.optim.AdamW(factors_of(model), lr=1e-3, fused=True)
    allocator.attach(optimizer, eta=0.1)
    scaler = torch.amp.GradScaler(DEVICE)
    for factor, taken in ((float("inf"), 0), (1.0, 1)):
        scaler.scale(model(torch.ones(4, 16, device=DEVICE)).mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert allocator.t == taken


def test_compiled_layers_give_the_same() -> None:
    model, layers = stack()
    model.to(DEVICE)
    x = torch.randn(32, 16, device=DEVICE)
    layer = layers["0"]
    results = gradients(layer, x, torch.compile(model))
    check_near(results, gradients(layer, x, model), 1e-4)


@pytest.mark.parametrize("device", ["cpu", DEVICE])
def test_peft_reads_what_was_written_on_the_gpu(device: str, tmp_path: Path) -> None:
    import peft

    model = MODELS["bert"]()
    plain = copy.deepcopy(model)
    for layer in inject(model.to(DEVICE), TARGETS["bert"], r=4).values():
        nn.init.normal_(layer.lora_c)
        layer.mask[1] = False
    write_peft_adapter(model, tmp_path, base="")
    read = peft.PeftModel.from_pretrained(plain.to(device), str(tmp_path)).eval()
    tokens = batch("bert")["input_ids"]
    with torch.no_grad():
        expected = model.eval()(input_ids=tokens.to(DEVICE)).logits.cpu()
        result = read(input_ids=tokens.to(device)).logits.cpu()
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_factors_on_the_gpu_are_compressed_as_on_the_cpu() -> None:
    torch.manual_seed(0)
    factors = {
        "a": (torch.randn(4, 8), torch.randn(6, 4)),
        "b": (torch.randn(4, 6), torch.eye(9, 4)),
    }
    on_device = {name: (A.to(DEVICE), B.to(DEVICE)) for name, (A, B) in factors.items()}
    for size in ({"target": 2}, {"parameters": 50}, {"energy": 0.8}):
        expected = compress(factors, **size)
        result = compress(on_device, **size)
        assert result.layers.keys() == expected.layers.keys()
        for name, (lora_A, lora_B) in result.factors.items():
            wanted_A, wanted_B = expected.factors[name]
            update = (lora_B @ lora_A).cpu()
            torch.testing.assert_close(update, wanted_B @ wanted_A, rtol=1e-4, atol=1e-5)


def test_a_4_bit_base_gives_the_plain_form_of_its_weight() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    base = bitsandbytes.nn.Linear4bit(
        64, 40, quant_type="nf4", compute_dtype=torch.float32, device="cpu"
    ).to(DEVICE)
    made = adapted(base)
    plain = nn.Linear(64, 40)
    quantized = base.weight
    plain.weight.data = bitsandbytes.functional.dequantize_4bit(
        quantized.data, quantized.quant_state
    ).to("cpu", torch.float32)
    plain.bias.data = base.bias.data.cpu()
    twin = DoRALinear(plain, r=R)
    for name in FACTORS:
        getattr(twin, name).data = getattr(made, name).data.cpu()
    x = torch.randn(5, 64)
    results = gradients(made, x.to(DEVICE), made)
    twin = twin.double()
    check_near(results, gradients(twin, x.double(), twin.plain_forward), 1e-4)
