"""compress, as its user runs it: a smaller adapter for PEFT, judged by weights or by outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny import sentences
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from dynarank.adapters.lora_files import read_lora
from dynarank.commands.calibration import measure_moments
from dynarank.commands.compress import main
from dynarank.pretrained.hub import HubConfig
from dynarank.runs.run import run


@pytest.fixture(scope="module")
def finished(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import configure

    folder = tmp_path_factory.mktemp("run")
    run(configure(folder, hub_root, "optimizer.lr=0.01", "method=lora", "budget.target=4"))
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    path.write_text("sentence\n" + "".join(f"{text}\n" for text in sentences(9, 3)))
    return path


def adapted(hub_root: Path, adapter: Path) -> peft.PeftModel:
    base = AutoModelForSequenceClassification.from_pretrained(
        hub_root / "models/FacebookAI/roberta-base", num_labels=2
    )
    return peft.PeftModel.from_pretrained(base, str(adapter)).eval()


def test_a_run_is_made_smaller_and_loads(
    finished: Path, hub_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(finished), str(tmp_path / "small"), "--target", "r1.5"])
    said = capsys.readouterr().out
    adapted(hub_root, tmp_path / "small")
    tensors = load_file(tmp_path / "small/adapter_model.safetensors")
    ranks = [len(tensor) for key, tensor in tensors.items() if "lora_A" in key]
    assert sum(ranks) == 18
    assert "% of the squared update is lost" in said
    assert said.count("roberta.encoder.layer") == 12
    before = ModelCard.load(finished / "adapter/README.md")
    after = ModelCard.load(tmp_path / "small/README.md")
    assert before.data.eval_results
    assert after.data.eval_results is None
    assert (
        after.data.to_dict().items() >= {"library_name": "peft", "tags": before.data.tags}.items()
    )
    assert "Made smaller by `dynarank compress`: " in after.text
    assert said.splitlines()[-1].split(" Written")[0] in after.text
    assert before.text.strip() in after.text


def test_moments_are_the_mean_over_all_tokens_of_all_rows(
    finished: Path, rows: Path, hub_root: Path
) -> None:
    """Against the outputs of PEFT's own lora_A, one row at a time."""
    adapter = finished / "adapter"
    factors = read_lora(adapter).factors
    found = measure_moments(adapter, factors, str(rows), HubConfig(str(hub_root)))
    model, tokenizer = adapted(hub_root, adapter), AutoTokenizer.from_pretrained(adapter)
    name = "roberta.encoder.layer.1.output.dense"
    outputs: list[torch.Tensor] = []
    module = model.get_submodule(f"base_model.model.{name}").lora_A["default"]
    module.register_forward_hook(lambda _, __, h: outputs.append(h[0].detach().double()))
    for text in rows.read_text().splitlines()[1:]:
        with torch.no_grad():
            model(**tokenizer(text, return_tensors="pt"))
    h = torch.cat(outputs)
    assert found.keys() == factors.keys()
    torch.testing.assert_close(found[name], h.T @ h / len(h), atol=1e-6, rtol=1e-5)


def test_calibrated_the_sample_loses_less_of_its_outputs(
    finished: Path, rows: Path, hub_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--hub-root", str(hub_root)]
    main([str(finished), str(tmp_path / "plain"), "--target", "r1"])
    main(
        [str(finished), str(tmp_path / "seen"), "--target", "r1", "--calibrate", str(rows), *place]
    )
    assert "% of the squared output on the sample is lost" in capsys.readouterr().out
    factors = read_lora(finished / "adapter").factors
    moments = measure_moments(finished / "adapter", factors, str(rows), HubConfig(str(hub_root)))

    def lost(folder: Path) -> float:
        """The squared error of the layers' outputs on the sample, over all layers."""
        kept, error = read_lora(folder).factors, 0.0
        for name, (lora_A, lora_B) in factors.items():
            inverse = torch.linalg.pinv(lora_A.double())
            part = kept.get(name)
            change = lora_B.double()
            if part is not None:
                change = change - part[1].double() @ part[0].double() @ inverse
            error += float((change @ moments[name] @ change.T).trace())
        return error

    assert lost(tmp_path / "seen") < lost(tmp_path / "plain")


def test_a_language_models_adapter_is_stored_as_small_as_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Padding one layer's 8 components to all layers would make it larger than before."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=9, num_attention_heads=2, **sizes))
    pattern = {"layers.0.mlp.down_proj": 8}
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=1,
        rank_pattern=pattern,
        target_modules="all-linear",
        init_lora_weights=False,
    )
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "all")
    for size in (["--parameters", "600"], ["--energy", "0.999999"]):
        out = tmp_path / size[0]
        main([str(tmp_path / "all"), str(out), *size])
        (said,) = re.findall(r"parameters became ([\d,]+);", capsys.readouterr().out)
        most = int(said.replace(",", ""))
        stored = load_file(out / "adapter_model.safetensors").values()
        assert sum(tensor.numel() for tensor in stored) == most
        assert size[0] == "--energy" or most <= 600


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "big"], "--target big: must be r and a number"),
        (["--energy", "1.5"], "--energy 1.5: must lie above 0"),
        (["--target", "r1", "--calibrate", "nowhere.csv"], "nowhere.csv: there is no such file"),
        (["--energy", "2", "--calibrate", "nowhere.csv"], "--energy 2.0: must lie above 0"),
        (["--target", "r1", "--base", "x"], "--base goes with --calibrate"),
    ],
)
def test_mistakes_are_one_message_and_leave_nothing(
    words: list[str],
    said: str,
    finished: Path,
    hub_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(finished), str(tmp_path / "out"), *words, "--hub-root", str(hub_root)])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_message(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(finished), "/proc/out", "--target", "r1"])
    assert "/proc/out cannot be written (" in capsys.readouterr().err


def test_a_foreign_adapter_needs_no_base_and_cannot_be_calibrated(
    finished: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (foreign / name).write_bytes((finished / "adapter" / name).read_bytes())
    main([str(foreign), str(tmp_path / "small"), "--energy", "0.9"])
    config = json.loads((tmp_path / "small/adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"]
    with pytest.raises(SystemExit, match="2"):
        main([str(foreign), str(tmp_path / "no"), "--target", "r1", "--calibrate", str(rows)])
    assert "holds no dynarank.json" in capsys.readouterr().err


def test_a_folder_without_an_adapter_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), str(tmp_path / "out"), "--target", "r1"])
    said = capsys.readouterr().err
    assert f"error: {tmp_path}: holds no adapter_config.json, so it is no PEFT adapter" in said
    assert "Errno" not in said
