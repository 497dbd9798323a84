"""What trains is float32 whatever the rest computes in, in files and predictions too."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import configure, newest_checkpoint
from torch import nn

from dynarank import inject, mark_trainable
from dynarank.commands.predict import main
from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.runs.predictor import load_predictor
from dynarank.runs.prepare import prepare
from dynarank.runs.run import run

SHORT = ["trainer.epochs=1", "budget.interval=1", "optimizer.lr=0.01"]
NARROW = "model.dtype=bfloat16"


def all_float32(folder: Path) -> bool:
    saved = newest_checkpoint(folder)
    weights = [value for key, value in saved["state_dict"].items() if not key.endswith(".mask")]
    moments = [
        value
        for state in saved["optimizer_states"][0]["state"].values()
        for value in state.values()
    ]
    return len(weights) > 2 and {value.dtype for value in (*weights, *moments)} == {torch.float32}


@pytest.mark.parametrize(
    "settings",
    [
        ["trainer.precision=bf16-mixed"],
        [NARROW],
        [NARROW, "trainer.precision=bf16-mixed"],
        [NARROW, "method=lora"],
        [NARROW, "method=adalora"],
        [NARROW, "method=houlsby"],
        [NARROW, "method=prompt method.reserved=20"],
        [NARROW, "method=head"],
        [NARROW, "task=squad"],
        [NARROW, "task=xsum", "model=bart_base", "task.generate.max_length=6"],
        [NARROW, "task=xsum", "model=t5_base", "task.generate.max_length=6"],
    ],
    ids=" ".join,
)
def test_what_trains_is_float32(settings: list[str], hub_root: Path, tmp_path: Path) -> None:
    if "bf16-mixed" in " ".join(settings) and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this machine computes no bfloat16 in hardware")
    results = run(configure(tmp_path, hub_root, *SHORT, *" ".join(settings).split()))
    assert all_float32(tmp_path)
    assert all(torch.isfinite(torch.tensor(value)) for value in results.metrics.values())
    moved = [
        value
        for key, value in newest_checkpoint(tmp_path)["state_dict"].items()
        if key.endswith(".lora_c")
    ]
    assert all(value.any() for value in moved if len(value))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    if weights.is_file():
        assert {value.dtype for value in load_file(weights).values()} == {torch.float32}


@pytest.mark.parametrize("method", ["full", "bitfit"])
def test_methods_that_train_the_base_refuse_a_narrow_one(
    method: str, hub_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"method={method}: .*model\.dtype=float32"):
        run(configure(tmp_path, hub_root, NARROW, f"method={method}"))


def test_a_narrow_base_is_narrow_and_its_head_is_not(hub_root: Path, tmp_path: Path) -> None:
    module = prepare(configure(tmp_path, hub_root, NARROW), tmp_path).module
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in module.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    model = module.model.eval()
    output = model(
        input_ids=torch.tensor([[1, 5, 2]]), labels=torch.tensor([1]), output_hidden_states=True
    )
    assert output.hidden_states[-1].dtype == torch.bfloat16
    assert output.logits.dtype == output.loss.dtype == torch.float32


def test_text_to_text_gets_its_loss_from_float32_logits(hub_root: Path, tmp_path: Path) -> None:
    settings = [NARROW, "task=xsum", "model=bart_base", "task.generate.max_length=6"]
    model = prepare(configure(tmp_path, hub_root, *settings), tmp_path).module.model
    output = model(input_ids=torch.tensor([[1, 5, 2]]), labels=torch.tensor([[4, 5, 2]]))
    assert output.logits.dtype == output.loss.dtype == torch.float32


def test_predictions_are_those_of_the_adapter_on_the_narrow_weights(
    hub_root: Path, tmp_path: Path
) -> None:
    """Against PEFT in float32, on the rounded base weights, and not merged into them."""
    import peft
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run(
        configure(
            tmp_path / "run",
            hub_root,
            NARROW,
            "trainer.epochs=12",
            "optimizer.lr=0.01",
            "budget.interval=5",
        )
    )
    texts = ["the cat sat", "he was not very good", "dog", "they sleep on a mat"]
    (tmp_path / "in.csv").write_text("sentence\n" + "\n".join(texts) + "\n")
    files = ["--input", str(tmp_path / "in.csv"), "--output", str(tmp_path / "out.csv")]
    main([str(tmp_path / "run"), *files, "--hub-root", str(hub_root)])
    with (tmp_path / "out.csv").open(newline="") as file:
        found = [float(row["probability_acceptable"]) for row in csv.DictReader(file)]
    path, adapter = hub_root / "models/FacebookAI/roberta-base", str(tmp_path / "run" / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2).bfloat16().float()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        model = peft.PeftModel.from_pretrained(base, adapter).eval()
        wanted = model(**inputs).logits.softmax(-1)[:, 1]
        for name, value in model.named_parameters():
            value.mul_("lora_B" not in name)
        without = model(**inputs).logits.softmax(-1)[:, 1]
    error = (torch.tensor(found) - wanted).abs().max()
    assert error < 0.05
    assert (wanted - without).abs().max() > 3 * error
    loaded = load_predictor(tmp_path / "run", HubConfig(str(hub_root))).model
    assert loaded.roberta.encoder.layer[0].attention.self.query.weight.dtype == torch.bfloat16


def test_c_moves_at_small_rates_on_a_narrow_base() -> None:
    """At c = 1 and rate 1e-4 a bfloat16 c would stand still: its next lower number is 0.996."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8)).bfloat16()
    layer = inject(model, ["0"], r=2, start="lora")["0"]
    mark_trainable(model)
    nn.init.normal_(layer.lora_B)
    optimizer = torch.optim.Adam([layer.lora_c], lr=1e-4)
    for _ in range(100):
        optimizer.zero_grad()
        model(torch.ones(4, 8, dtype=torch.bfloat16)).float().square().mean().backward()
        optimizer.step()
    assert bool(((layer.lora_c - 1).abs() > 5e-3).all())


def test_the_sum_with_a_narrow_base_is_rounded_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False)).bfloat16()
    layer = inject(model, ["0"], r=4)["0"]
    layer.lora_c.data.fill_(1.0)
    x = torch.randn(16, 64).bfloat16()
    exact = layer.base(x).double() + x.double() @ layer.delta_weight().double().T
    assert torch.equal(layer(x), exact.bfloat16())
