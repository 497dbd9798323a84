"""Checkpointed activations and a compiled pass change how a model computes, not what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import configure, newest_checkpoint

from dynarank.config.schema import TrainerConfig
from dynarank.errors import UserError
from dynarank.runs.preflight import check_compiler
from dynarank.runs.prepare import prepare
from dynarank.runs.run import run


def gradients(hub: Path, folder: Path, *settings: str) -> tuple[dict[str, torch.Tensor], int]:
    """Of one batch, dropout on; and how often a map in a layer of the model was computed."""
    module = prepare(configure(folder, hub, *settings), folder).module
    calls = []
    layer = next(part for part in module.modules() if type(part).__name__.endswith("Layer"))
    inner = next(part for part in layer.modules() if isinstance(part, torch.nn.Linear))
    inner.register_forward_pre_hook(lambda *_: calls.append(1))
    names = {
        name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad
    }
    torch.manual_seed(0)
    for name, parameter in names.items():  # else c = 0 hides A and B
        if name.endswith("lora_c"):
            parameter.data.normal_()
    ids = torch.tensor([[1, 5, 6, 2], [1, 8, 2, 0]])
    labels = ids if "bart" in " ".join(settings) else torch.tensor([0, 1])
    module.training_pass(
        input_ids=ids, attention_mask=(ids != 0).long(), labels=labels
    ).loss.backward()
    return {name: parameter.grad for name, parameter in names.items()}, len(calls)


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["model.dtype=bfloat16"],
        ["method=lora"],
        ["task=xsum", "model=bart_base", "task.generate.max_length=6"],
    ],
    ids=" ".join,
)
def test_checkpointed_activations_give_the_same_gradients(
    settings: list[str], hub_root: Path, tmp_path: Path
) -> None:
    plain, once = gradients(hub_root, tmp_path, *settings)
    saving, twice = gradients(hub_root, tmp_path, *settings, "trainer.gradient_checkpointing=true")
    assert (once, twice) == (1, 2)
    assert plain.keys() == saving.keys()
    assert all(torch.equal(plain[name], saving[name]) for name in plain)
    assert sum(bool(gradient.any()) for gradient in plain.values()) > 12


def test_an_architecture_without_checkpoints_is_refused(hub_root: Path, tmp_path: Path) -> None:
    from transformers import RobertaForSequenceClassification

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RobertaForSequenceClassification, "supports_gradient_checkpointing", False)
        with pytest.raises(
            UserError, match=r"trainer\.gradient_checkpointing = true: .*FacebookAI/roberta-base"
        ):
            prepare(configure(tmp_path, hub_root, "trainer.gradient_checkpointing=true"), tmp_path)


@pytest.fixture
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """torch.compile without code generation."""
    compiled: list[Any] = []

    def compile_traced(function: Any, **options: Any) -> Any:
        compiled.append(torch.compile(function, backend="eager", **options))
        return compiled[-1]

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr("dynarank.training.module.torch", Torch(compile_traced))
    with torch.fx.experimental._config.patch(use_duck_shape=True):
        yield compiled


class Torch:
    """The module torch with another `compile`."""

    def __init__(self, compile_: Any) -> None:
        self.compile = compile_

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.mark.parametrize(
    "more", [[], ["trainer.gradient_checkpointing=true", "trainer.accumulate=2"]], ids=" ".join
)
def test_a_run_compiles_once_and_once_more_when_it_is_cut_and_ends_like_one_that_does_not(
    more: list[str], hub_root: Path, tmp_path: Path, compiled_once: list[Any]
) -> None:
    settings = [
        "budget.interval=1",
        "trainer.epochs=2",
        "optimizer.lr=0.01",
        "trainer.batch_size=8",
        "method.dropout=0",
    ]
    hub = without_dropout(tmp_path)
    run(configure(tmp_path / "plain", hub_root, *settings, *more, hub))
    assert not compiled_once
    run(configure(tmp_path / "fast", hub_root, *settings, *more, hub, "trainer.compile=true"))
    assert len(compiled_once) == 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]
    plain, fast = newest_checkpoint(tmp_path / "plain"), newest_checkpoint(tmp_path / "fast")
    assert list(plain["state_dict"]) == list(fast["state_dict"])
    head = [name for name in plain["state_dict"] if "classifier" in name]
    assert (
        max(
            float((plain["state_dict"][name] - fast["state_dict"][name]).abs().max())
            for name in head
        )
        < 1e-3
    )
    files = [
        sorted(path.name for path in (tmp_path / kind / "adapter").iterdir())
        for kind in ("plain", "fast")
    ]
    assert files[0] == files[1]


def without_dropout(folder: Path) -> str:
    from tiny import tiny_roberta, write_model

    sizes = tiny_roberta(
        num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return f"model.path={write_model(folder / 'model', sizes)}"


def test_no_compiler_is_said_before_anything_is_read() -> None:
    from torch._inductor import config

    check_compiler(TrainerConfig())
    said = r"trainer\.compile = true needs a C\+\+ compiler"
    # monkeypatch would leave torch's setting hidden, from which later tests would suffer.
    with config.patch({"cpp.cxx": ("/no/such/compiler",)}), pytest.raises(UserError, match=said):
        check_compiler(TrainerConfig(compile=True))
