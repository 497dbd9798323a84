"""Allocate ranks in a LightningModule of one's own.

    python examples/lightning_module.py [--model HUB_ID_OR_FOLDER] [--epochs 3] [--output adapter]

Without a model, a small BERT with random weights learns to classify random texts.
"""

from __future__ import annotations

import argparse

import lightning.pytorch as pl
import peft
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from dynarank.integrations.lightning import RankAllocationCallback
from dynarank.integrations.peft import finalize


def load_base(name: str | None) -> torch.nn.Module:
    """Return a classifier by its name, or a small one with random weights."""
    if name is not None:
        return AutoModelForSequenceClassification.from_pretrained(name)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=64, num_attention_heads=4, **sizes))


class Classifier(pl.LightningModule):
    """A PEFT model in a module as anybody writes it."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        config = peft.LoraConfig(task_type="SEQ_CLS", r=6, target_modules=["query", "value"])
        self.model = peft.get_peft_model(load_base(name), config)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        tokens, labels = batch
        loss = self.model(input_ids=tokens, labels=labels).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", default="adapter")
    options = parser.parse_args()

    tokens = torch.randint(3, 64, (128, 12), generator=torch.Generator().manual_seed(0))
    data = TensorDataset(tokens, tokens[:, 0] % 2)
    module = Classifier(options.model)
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        callbacks=[RankAllocationCallback(target=4, interval=5)],
        logger=False,
        enable_checkpointing=False,
        log_every_n_steps=5,
    )
    trainer.fit(module, DataLoader(data, batch_size=8, shuffle=True))

    print(f"ranks: {finalize(module.model)}")
    module.model.save_pretrained(options.output)


if __name__ == "__main__":
    main()
