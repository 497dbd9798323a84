"""Which linear maps are adapted in the architectures that we know: every one of attention and feed-forward."""

from __future__ import annotations

_BERT = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
_BART = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
_LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_T5 = [r".*Attention\.[qkvo]", r".*DenseReluDense\.w(i|i_0|i_1|o)"]

KNOWN_TARGETS: dict[str, list[str]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "mpnet": ["attn.q", "attn.k", "attn.v", "attn.o", "intermediate.dense", "output.dense"],
    "deberta": [
        r".*\.(in_proj|pos_proj|pos_q_proj)",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ],
    "deberta-v2": [
        r".*\.(pos_)?(query|key|value)_proj",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ],
    "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"],
    "bart": _BART,
    "mbart": _BART,
    "marian": _BART,
    "t5": _T5,
    "mt5": _T5,
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
"""Targets by the model configuration's `model_type`, for `dynarank.inject`."""
