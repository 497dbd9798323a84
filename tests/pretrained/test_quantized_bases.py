"""Runs on bases whose weights are quantized: at loading (bitsandbytes), or by another library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from prediction_runs import trained
from tiny import configure, sentences, tiny_roberta, write_model
from torch import nn

from dynarank.adapters.inject import inject
from dynarank.adapters.linears import is_linear, linear_shape, stores_transposed
from dynarank.commands.export import main as export
from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.pretrained.quantization import is_quantized, quantized_modules
from dynarank.runs.predictor import load_predictor, load_run
from dynarank.runs.run import run

bitsandbytes = pytest.importorskip("bitsandbytes")
KINDS = {"nf4": bitsandbytes.nn.Linear4bit, "int8": bitsandbytes.nn.Linear8bitLt}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose linear layers are large enough for bitsandbytes' blocks of 64 weights."""
    config = tiny_roberta(hidden_size=64, intermediate_size=128, num_hidden_layers=1)
    return write_model(tmp_path_factory.mktemp("base") / "roberta", config)


@pytest.fixture(scope="module", params=list(KINDS))
def quantized(
    request: pytest.FixtureRequest,
    base: Path,
    hub_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A finished run on each kind of quantized base."""
    folder = tmp_path_factory.mktemp(request.param)
    given = [f"model.path={base}", f"model.quantization={request.param}"]
    return trained(folder, hub_root, *given, "trainer.batch_size=8")


def kind_of(run_folder: Path) -> str:
    recorded = json.loads((run_folder / "adapter" / "dynarank.json").read_text())
    return str(recorded["model"]["quantization"])


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    inputs = tokenizer(sentences(6, 5), return_tensors="pt", padding=True)
    with torch.no_grad():
        return model.eval()(**inputs).logits.softmax(-1)


def test_the_blocks_are_quantized_and_nothing_else(quantized: Path, hub_root: Path) -> None:
    loaded = load_run(quantized, HubConfig(str(hub_root)))
    model = loaded.model.get_base_model()
    assert is_quantized(model)
    layers = [
        name for name, module in model.named_modules() if type(module) is KINDS[kind_of(quantized)]
    ]
    assert len(layers) == 6
    assert all(".layer.0." in name for name in layers)
    for name, parameter in model.named_parameters():
        inside = any(
            name.startswith(f"{layer}.base_layer.weight") or name == f"{layer}.weight"
            for layer in layers
        )
        assert parameter.dtype == torch.float32 or inside, name
    assert set(quantized_modules(model)) == set(layers)


def test_peft_alone_gives_what_was_scored(quantized: Path, base: Path, hub_root: Path) -> None:
    import peft
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    predictor = load_predictor(quantized, HubConfig(str(hub_root)), device="cpu")
    assert is_quantized(predictor.model)
    kept = {"llm_int8_skip_modules": ["classifier"]}
    if kind_of(quantized) == "nf4":
        wanted = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, **kept
        )
    else:
        wanted = BitsAndBytesConfig(load_in_8bit=True, **kept)
    plain = AutoModelForSequenceClassification.from_pretrained(
        base, quantization_config=wanted, dtype=torch.float32
    )
    adapted = peft.PeftModel.from_pretrained(plain, str(quantized / "adapter"))
    ours = logits(predictor.model, predictor.tokenizer)
    torch.testing.assert_close(logits(adapted, predictor.tokenizer), ours, atol=1e-4, rtol=0)


def test_a_merged_model_is_plain_and_loses_nothing(
    quantized: Path, hub_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForSequenceClassification

    export([str(quantized), str(tmp_path / "merged"), "--merged", "--hub-root", str(hub_root)])
    assert "is not quantized any more" in capsys.readouterr().out
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert not is_quantized(merged)
    predictor = load_predictor(quantized, HubConfig(str(hub_root)), device="cpu")
    ours = logits(predictor.model, predictor.tokenizer)
    # 8-bit layers compute in float16, which the merged ones do not.
    torch.testing.assert_close(logits(merged, predictor.tokenizer), ours, atol=2e-3, rtol=0)


def test_a_base_that_comes_quantized_is_not_quantized_again(
    base: Path, hub_root: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "gptq"
    copy.mkdir()
    for file in base.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    settings = json.loads((copy / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (copy / "config.json").write_text(json.dumps(settings))
    given = [f"model.path={copy}", "model.quantization=nf4"]
    with pytest.raises(UserError, match=r"come quantized already \(gptq\)\. Use model\.quant"):
        run(configure(tmp_path / "run", hub_root, *given))


def test_training_all_weights_of_a_quantized_base_is_refused(
    base: Path, hub_root: Path, tmp_path: Path
) -> None:
    given = [f"model.path={base}", "model.quantization=nf4", "method=full"]
    with pytest.raises(UserError, match=r"these are quantized: .*model\.quantization=null"):
        run(configure(tmp_path, hub_root, *given))


def test_an_unknown_quantization_is_answered_with_the_known(base: Path, hub_root: Path) -> None:
    with pytest.raises(UserError, match=r"model\.quantization = 'fp4': must be one of nf4, int8"):
        configure(base, hub_root, "model.quantization=fp4")


class PackedLinear(nn.Module):
    """A linear map as GPTQ's and HQQ's are: integers in buffers, no parameter at all."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.in_features, self.out_features = d_in, d_out
        self.register_buffer("qweight", torch.randint(-8, 8, (d_out, d_in), dtype=torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.qweight.to(x.dtype) / 16).T


def test_linear_maps_of_packed_integers_are_adapted() -> None:
    packed = PackedLinear(5, 3)
    assert is_linear(packed)
    assert linear_shape(packed) == (5, 3)
    assert not stores_transposed(packed)
    model = nn.Sequential(packed)
    x = torch.randn(4, 5)
    before = model(x)
    (layer,) = inject(model, ["0"], r=2).values()
    assert not is_linear(layer)  # nor is it adapted twice
    torch.testing.assert_close(model(x), before)
    model(x).square().sum().backward()
    assert layer.lora_c.grad is not None
    with torch.no_grad():
        layer.lora_c.fill_(1.0)
    torch.testing.assert_close(model(x), before + x @ layer.delta_weight().T)
