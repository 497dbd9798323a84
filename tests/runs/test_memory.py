"""The estimate of training memory, against what torch's own profiler sees allocated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import configure, tiny_roberta, write_model

from dynarank.adapters import masked_products
from dynarank.commands.budget import main as budget
from dynarank.config.schema import TrainConfig
from dynarank.errors import UserError
from dynarank.methods import build_method
from dynarank.pretrained.architectures import ARCHITECTURES
from dynarank.runs.memory import KEPT_BY_GLIBC, LiveBytes, estimate_memory, example_batch
from dynarank.tasks import build_task


def adapted(config: TrainConfig, device: str) -> tuple[Any, Any, Any]:
    """The run's task, its model of random weights, and that model adapted."""
    import transformers

    task = build_task(config.task)
    settings = transformers.AutoConfig.from_pretrained(config.model.path)
    with torch.device(device):
        model = getattr(transformers, task.auto_class).from_config(settings)
    method = build_method(config.method, config.budget, config.dem)
    targets = list(ARCHITECTURES[settings.model_type].targets)
    return task, model, method.adapt(model, targets, ["classifier"])


def profiled_peak(model: Any, batch: dict[str, torch.Tensor]) -> int:
    """Bytes that torch's allocator gave out beyond the start, in the second step, at the most."""
    model.train()
    model(**batch).loss.backward()  # the gradients are there from now on
    vars(masked_products._local).clear()  # the layers' common memory counts as well
    with torch.profiler.profile(profile_memory=True) as profiler:
        model(**batch).loss.backward()
    live = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize(("rows", "length", "dropout"), [(4, 16, 0.1), (16, 60, 0.1), (8, 48, 0.0)])
def test_the_estimate_is_what_the_profiler_sees(
    rows: int, length: int, dropout: float, tmp_path: Path
) -> None:
    sizes = dict(hidden_size=64, intermediate_size=128, vocab_size=32)
    settings = tiny_roberta(**sizes, attention_probs_dropout_prob=dropout)
    folder = write_model(tmp_path / "model", settings)
    given = [f"model.path={folder}", f"trainer.batch_size={rows}", f"task.max_length={length}"]
    config = configure(tmp_path, tmp_path, *given)
    task, model, with_adapter = adapted(config, "meta")
    memory = estimate_memory(config, model, with_adapter, task)
    task, model, with_adapter = adapted(config, "cpu")
    measured = profiled_peak(with_adapter, example_batch(config, model, task))
    assert memory.activations == pytest.approx(measured, rel=0.15)
    trained = sum(p.numel() for p in with_adapter.parameters() if p.requires_grad)
    assert memory.gradients == memory.trained == 4 * trained
    frozen = [p for p in with_adapter.parameters() if not p.requires_grad]
    buffers = sum(buffer.nbytes for buffer in with_adapter.buffers())
    assert memory.base == sum(p.nbytes for p in frozen) + buffers


def test_narrow_weights_and_checkpointed_activations_take_less(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", tiny_roberta(hidden_size=64, intermediate_size=128))
    totals = {}
    for setting in ("model.dtype=float32", "model.quantization=int8", "model.quantization=nf4"):
        config = configure(tmp_path, tmp_path, f"model.path={folder}", setting)
        task, model, with_adapter = adapted(config, "meta")
        totals[setting] = estimate_memory(config, model, with_adapter, task).base
    blocks = 2 * (4 * 64 * 64 + 2 * 64 * 128)  # weights of the linear layers
    assert totals["model.dtype=float32"] - totals["model.quantization=int8"] == 3 * blocks
    saved = totals["model.quantization=int8"] - totals["model.quantization=nf4"]
    assert saved == pytest.approx(blocks / 2, rel=0.05)
    activations = []
    for checkpointing in ("false", "true"):
        given = [f"model.path={folder}", f"trainer.gradient_checkpointing={checkpointing}"]
        config = configure(tmp_path, tmp_path, *given, "task.max_length=60")
        task, model, with_adapter = adapted(config, "meta")
        activations.append(estimate_memory(config, model, with_adapter, task).activations)
    assert activations[1] < 0.9 * activations[0]


def test_live_bytes_are_those_of_tensors_that_are_alive() -> None:
    counter = LiveBytes()
    with counter:
        first = torch.zeros(100)
        second = first + 1
        view = second[:50]  # no memory of its own
        del first, second
        assert counter.live == 400
        del view
    assert counter.live == 0
    assert counter.peak == 800


def test_the_command_lists_what_memory_goes_to(
    hub_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget(["--memory", f"hub.root={hub_root}", "trainer.batch_size=4", "task.max_length=32"])
    shown = capsys.readouterr().out
    assert "training memory, method=dora, 32-true:" in shown
    assert "MB  a batch of 4 of the longest rows" in shown
    sizes = re.findall(r"([\d,.]+) MB  (.*)", shown)
    by_name = {name: float(size.replace(",", "")) for size, name in sizes}
    tensors, batch = by_name["all tensors"], by_name["a batch of 4 of the longest rows"]
    grown = by_name["by which a process on Linux grows on the CPU"]
    assert grown == pytest.approx(tensors + (KEPT_BY_GLIBC - 1) * batch, abs=0.11)


def test_a_family_whose_batches_are_not_known_is_refused(tmp_path: Path) -> None:
    config = configure(tmp_path, tmp_path, "model.path=x")
    task = build_task(config.task)
    task.auto_class = "AutoModelForCTC"  # type: ignore[misc]
    with pytest.raises(UserError, match="--memory: is not known for"):
        example_batch(config, None, task)
