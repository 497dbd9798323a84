"""Tiny models from configurations, and data for them, for the tests of the integrations."""

from __future__ import annotations

from typing import Any

import torch

WORDS = 64


def bert() -> Any:
    """Return a BERT classifier of two layers."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def llama(size: int = 32) -> Any:
    """Return a LLaMA of two layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=size,
        intermediate_size=2 * size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def gpt2() -> Any:
    """Return a GPT-2 of two layers, whose linear maps are Conv1D."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config)


MODELS = {"bert": bert, "llama": llama, "gpt2": gpt2}
TARGETS = {
    "bert": ["query", "value", "intermediate.dense"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
}


def batch(kind: str, size: int = 4) -> dict[str, torch.Tensor]:
    """Return one batch of random tokens with labels."""
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, WORDS, (size, 8), generator=draw)
    labels = tokens[:, 0] % 2 if kind == "bert" else tokens
    return {"input_ids": tokens, "labels": labels}


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random texts with a label each: a Trainer's data."""

    def __init__(self, kind: str, count: int = 48) -> None:
        self.content = batch(kind, size=count)

    def __len__(self) -> int:
        return len(self.content["labels"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self.content.items()}
