"""Allocate ranks in a training loop of one's own, with torch and the library alone.

    python examples/plain_loop.py [--steps 200]

The model is a small transformer encoder with random weights, and the task is to tell whether a
sequence holds more low numbers than high ones.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from dynarank import BudgetSchedule, RankAllocator, inject, mark_trainable

WORDS = 32


class Classifier(nn.Module):
    """A transformer encoder over tokens, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 32)
        layer = nn.TransformerEncoderLayer(32, nhead=4, dim_feedforward=64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.head = nn.Linear(32, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(dim=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()

    torch.manual_seed(0)
    model = Classifier()
    layers = inject(model, targets=["linear1", "linear2"], r=6)
    mark_trainable(model, head=["head"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)

    schedule = BudgetSchedule(init=6, target=4, total=options.steps, interval=10)
    allocator = RankAllocator(layers, schedule)
    allocator.attach(optimizer, eta=0.1)  # from here on, optimizer.step() allocates

    for step in range(options.steps):
        tokens = torch.randint(0, WORDS, (32, 12))
        labels = (tokens < WORDS // 2).sum(dim=1).gt(6).long()
        loss = nn.functional.cross_entropy(model(tokens), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, budget {allocator.budget():.2f}")

    for name, rank in allocator.ranks().items():
        print(f"{rank}  {name}")
    print(f"{sum(allocator.ranks().values())} components, {len(layers)} layers")


if __name__ == "__main__":
    main()
