"""Allocate ranks in TRL's SFTTrainer. It needs `pip install trl`.

    python examples/sft_trainer.py [--model HUB_ID_OR_FOLDER] [--steps 60] [--output runs/sft]

Without a model, a small LLaMA with random weights and a tokenizer of one token a letter learns a
few sentences.
"""

from __future__ import annotations

import argparse
import string
from typing import Any

import datasets
import peft
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from trl import SFTConfig, SFTTrainer

from dynarank.integrations.transformers import RankAllocationCallback

SENTENCES = ["the cat sat on the mat", "a dog ran to the door", "the rain fell all day"]


def load(name: str | None) -> tuple[Any, Any]:
    """Return a model and its tokenizer by name, or a small model with random weights."""
    if name is not None:
        return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    letters = ["<pad>", "<s>", "</s>", "<unk>", " ", *string.ascii_lowercase]
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config), fast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", default="runs/sft")
    options = parser.parse_args()

    model, tokenizer = load(options.model)
    callback = RankAllocationCallback(target=4, interval=10)
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(
            output_dir=options.output,
            max_steps=options.steps,
            max_length=32,
            learning_rate=1e-3,
            save_strategy="no",
            bf16=torch.cuda.is_available(),
            report_to="none",
        ),
        train_dataset=datasets.Dataset.from_dict({"text": SENTENCES * 20}),
        peft_config=peft.LoraConfig(r=6, target_modules=["q_proj", "v_proj"]),
        callbacks=[callback],
    )
    trainer.train()
    trainer.save_model(f"{options.output}/adapter")
    print(f"ranks: {callback.ranks}")


if __name__ == "__main__":
    main()
