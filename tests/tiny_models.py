"""Tiny models from configurations, with PEFT LoRA on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

TARGETS = {
    "bert": ["query", "value", "intermediate.dense"],
    "llama": ["q_proj", "v_proj", "up_proj"],
    "gpt2": ["c_attn", "c_fc"],
}
TASKS = {"bert": "SEQ_CLS", "llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM"}


def tiny_base(kind: str) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    if kind == "bert":
        config: Any = transformers.BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model: Any = transformers.BertForSequenceClassification(config)
    elif kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.GPT2Config(
            vocab_size=40,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=32,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        model = transformers.GPT2LMHeadModel(config)
    return model.eval()


def lora(kind: str, base: nn.Module | None = None, r: int = 6, **settings: Any) -> Any:
    import peft

    config = peft.LoraConfig(
        r=r,
        lora_alpha=8,
        task_type=TASKS[kind],
        target_modules=TARGETS[kind],
        fan_in_fan_out=kind == "gpt2",
        **settings,
    )
    return peft.get_peft_model(base if base is not None else tiny_base(kind), config)


def batch(kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 40, (4, 7), generator=generator)
    labels = torch.randint(0, 2, (4,), generator=generator) if kind == "bert" else ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
