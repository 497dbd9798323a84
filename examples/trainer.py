"""Allocate ranks in transformers' Trainer.

    python examples/trainer.py [--model HUB_ID_OR_FOLDER] [--steps 60] [--output runs/trainer]

Without a model, a small BERT with random weights learns to classify random texts.
"""

from __future__ import annotations

import argparse

import peft
import torch
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from dynarank.integrations.transformers import RankAllocationCallback


class Texts(Dataset):
    """Random tokens; a text's class is whether its first token is even."""

    def __init__(self, count: int) -> None:
        self.tokens = torch.randint(3, 64, (count, 12), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index, 0] % 2}


def load_base(name: str | None) -> torch.nn.Module:
    """Return a classifier by its name, or a small one with random weights."""
    if name is not None:
        return AutoModelForSequenceClassification.from_pretrained(name)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=64, num_attention_heads=4, **sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", default="runs/trainer")
    options = parser.parse_args()

    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=6, target_modules=["query", "value"], modules_to_save=["classifier"]
    )
    callback = RankAllocationCallback(target=4, interval=10)
    trainer = Trainer(
        model=peft.get_peft_model(load_base(options.model), config),
        args=TrainingArguments(
            output_dir=options.output,
            max_steps=options.steps,
            learning_rate=1e-3,
            logging_steps=10,
            save_steps=20,
            report_to="none",
        ),
        train_dataset=Texts(256),
        callbacks=[callback],
    )
    trainer.train()
    trainer.save_model(f"{options.output}/adapter")
    print(f"ranks: {callback.ranks}")


if __name__ == "__main__":
    main()
