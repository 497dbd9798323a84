"""Configurations of two-layer models of every known architecture."""

from __future__ import annotations

from typing import Any

from torch import nn

from dynarank.pretrained.architectures import ARCHITECTURES
from dynarank.pretrained.models import body_name

BERT = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
BART = {
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
BART |= {
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BART |= {"decoder_start_token_id": 2, "forced_eos_token_id": 2}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
GLOBAL = [[["global"], 2]]
VIT = BERT | {"image_size": 8, "patch_size": 4}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1]}
SWIN |= {"num_heads": [1, 2], "window_size": 4}
LLAMA = BERT | {"num_key_value_heads": 1, "head_dim": 4}
RELATIVE = BERT | {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": 8,
}

CONFIGS: dict[str, list[dict[str, Any]]] = {
    "bert": [BERT],
    "roberta": [BERT],
    "xlm-roberta": [BERT],
    "electra": [BERT | {"embedding_size": 4}],
    "mpnet": [BERT],
    "deberta": [BERT, RELATIVE],
    "deberta-v2": [BERT, RELATIVE | {"share_att_key": True}, RELATIVE | {"share_att_key": False}],
    "distilbert": [{"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16}],
    "bart": [BART],
    "mbart": [BART],
    "marian": [BART],
    "t5": [T5, T5 | {"feed_forward_proj": "gated-gelu"}],
    "mt5": [T5 | {"feed_forward_proj": "gated-gelu"}],
    "gpt2": [{"n_embd": 8, "n_layer": 2, "n_head": 2}],
    "llama": [LLAMA],
    "mistral": [LLAMA],
    "qwen2": [LLAMA],
    "qwen3": [LLAMA],
    "albert": [BERT | {"embedding_size": 4, "num_hidden_groups": 2}],
    "modernbert": [BERT | {"pad_token_id": 0}],
    "gemma": [LLAMA],
    "gemma2": [LLAMA],
    "gemma3_text": [LLAMA],
    "smollm3": [LLAMA | {"pad_token_id": 0}],
    "stablelm": [LLAMA],
    "phi": [BERT],
    "phi3": [BERT | {"num_key_value_heads": 1, "pad_token_id": 0}],
    "starcoder2": [LLAMA],
    "opt": [SIZES | {"ffn_dim": 16, "word_embed_proj_dim": 8}],
    "gpt_neo": [{"hidden_size": 8, "num_layers": 2, "num_heads": 2, "attention_types": GLOBAL}],
    "gpt_neox": [BERT],
    "bloom": [{"hidden_size": 8, "n_layer": 2, "n_head": 2}],
    "falcon": [SIZES],
    "vit": [VIT],
    "deit": [VIT],
    "beit": [VIT],
    "dinov2": [VIT, VIT | {"use_swiglu_ffn": True}],
    "dinov2_with_registers": [VIT],
    "swin": [SWIN],
    "swinv2": [SWIN],
    "clip": [{"vision_config": VIT, "text_config": BERT}],
    "siglip": [{"vision_config": VIT, "text_config": BERT}],
    "siglip2": [{"vision_config": BERT | {"patch_size": 4, "num_patches": 4}, "text_config": BERT}],
}
IMAGES = "AutoModelForImageClassification"
WORDS = {"vocab_size": 12}
CASES = [(kind, index) for kind, configs in CONFIGS.items() for index in range(len(configs))]


def of_family(family: str) -> dict[str, Any]:
    """The size of the vocabulary, for models that have one."""
    return {} if family == IMAGES else WORDS


def auto_class(kind: str) -> str:
    """The auto class that the architecture is tested with."""
    if ARCHITECTURES[kind].kind == "image":
        return IMAGES
    return "AutoModelForSeq2SeqLM" if kind == "marian" else "AutoModelForSequenceClassification"


def head_modules(model: nn.Module) -> list[str]:
    body = body_name(model)  # type: ignore[arg-type]
    return [name for name, _ in model.named_children() if name != body]
