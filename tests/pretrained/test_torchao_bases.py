"""Runs on a base that comes quantized by torchao: trained, predicted, merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import sums, write_language_model, write_lines
from tiny import configure
from torch import nn

from dynarank.commands.export import main as export
from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.pretrained.quantization import dequantize, is_quantized
from dynarank.runs.predictor import load_predictor
from dynarank.runs.run import run

quantization = pytest.importorskip("torchao.quantization")
SETTINGS = {
    "int8": quantization.Int8WeightOnlyConfig(),
    "int4": quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    return write_language_model(tmp_path_factory.mktemp("plain"), **sizes)


def quantized_model(plain: Path, kind: str) -> Any:
    from transformers import AutoModelForCausalLM, TorchAoConfig

    return AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=TorchAoConfig(SETTINGS[kind]), dtype=torch.float32
    )


@pytest.mark.parametrize("kind", list(SETTINGS))
def test_a_run_on_torchaos_weights_predicts_and_merges(
    kind: str, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tmp_path / "base"
    stored = quantized_model(plain, kind)
    stored.save_pretrained(base)
    AutoTokenizer.from_pretrained(plain).save_pretrained(base)
    before = stored.model.layers[0].mlp.up_proj.weight.dequantize()
    given = [
        "task=instruct",
        f"model.path={base}",
        f"task.train_file={write_lines(tmp_path / 'train.jsonl', sums(16))}",
        f"task.validation_file={write_lines(tmp_path / 'other.jsonl', sums(8, 1))}",
        "task.max_length=64",
        "optimizer.lr=0.05",
        "budget.interval=1",
    ]
    results = run(configure(tmp_path / "run", tmp_path, *given))
    assert results.at_budget
    predictor = load_predictor(tmp_path / "run", HubConfig(None), device="cpu")
    assert is_quantized(predictor.model)
    export([str(tmp_path / "run"), str(tmp_path / "merged"), "--merged"])
    assert "merged into the torchao weights" in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not is_quantized(merged)
    assert type(merged.model.layers[0].mlp.up_proj.weight) is nn.Parameter
    # The update is seen, and the rest is the weights that were trained on, not the plain ones.
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        wanted = predictor.model(input_ids=ids).logits
        assert float((stored(input_ids=ids).logits - wanted).abs().max()) > 1e-2
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, atol=1e-4, rtol=0)
    dequantize(stored, "the base")
    torch.testing.assert_close(stored.model.layers[0].mlp.up_proj.weight.detach(), before)


def test_training_all_weights_of_a_torchao_base_is_refused(plain: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    quantized_model(plain, "int8").save_pretrained(base)
    AutoTokenizer.from_pretrained(plain).save_pretrained(base)
    given = [
        "task=instruct",
        "method=full",
        f"model.path={base}",
        f"task.train_file={write_lines(tmp_path / 'train.jsonl', sums(16))}",
    ]
    with pytest.raises(UserError, match="these are quantized"):
        run(configure(tmp_path / "run", tmp_path, *given))
