"""The ways to train that `bench.py` times beside each other, each one optimizer step of a model.

A step is forward, backward, clipping and AdamW (fused, for all), on random tokens and a random
model. Peers are taken from their released packages. The authors' formulation is written from the
paper.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from dynarank import BudgetSchedule, RankAllocator, cut_to_kept, inject, mark_trainable
from dynarank.allocation.dem import add_dem_gradient

RANK, BATCH, MIB = 12, 16, 2**20
TARGETS = ["query", "key", "value", "output.dense", "intermediate.dense"]
PATTERN = r".*\.(query|key|value|output\.dense|intermediate\.dense)"
SHAPES = {
    "minilm": (BertModel, BertConfig, (384, 12, 1536)),
    "roberta": (RobertaModel, RobertaConfig, (768, 12, 3072)),
    "tiny": (BertModel, BertConfig, (16, 2, 32)),
}
PRECISIONS = ("32-true", "bf16-mixed")
Step = Callable[[Tensor], Any]


@dataclass
class Contender:
    """One way to train, and what was measured of it."""

    name: str
    model: nn.Module
    forward: Step
    step: Step
    times: list[float] = field(default_factory=list)
    kept: float = 0.0
    """MiB kept for the backward pass, without the parameters."""
    counts: tuple[int, int] = (0, 0)
    share: float = 0.0
    """The share of a step that allocator and DEM take."""


def base_model(shape: str, blocks: int) -> nn.Module:
    """Return a model of the shape with random weights and no dropout of its own."""
    model, config, (hidden, heads, inner) = SHAPES[shape]
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": inner}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    # A vocabulary of no size that matters: no contender trains the embeddings.
    built = model(config(vocab_size=1000, num_hidden_layers=blocks, **sizes, **off))
    return built.requires_grad_(False).train()


def loss_of(model: nn.Module, precision: str) -> Step:
    """Return a loss whose gradient goes through the whole model, the bound's too.

    With bf16-mixed, the forward pass alone is under autocast, as Lightning has it.
    """
    inner = getattr(model, "base_model", model)
    embeddings = getattr(inner, "model", inner).embeddings
    embeddings.register_forward_hook(lambda _, __, output: output.requires_grad_())

    def loss(tokens: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            return model(input_ids=tokens).last_hidden_state.float().square().mean()

    return loss


def trainer_of(model: nn.Module, forward: Step, before: Any = None, after: Any = None) -> Step:
    """Return one training step; `before` the update, `after` it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True) if trained else None

    def step(tokens: Tensor) -> None:
        forward(tokens).backward()
        if optimizer is None:
            return
        if before is not None:
            before()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if after is not None:
            after()
        optimizer.zero_grad()

    return step


def bound(shape: str, blocks: int, dropout: float, precision: str = "32-true") -> Contender:
    model = base_model(shape, blocks)
    forward = loss_of(model, precision)
    return Contender("bound", model, forward, trainer_of(model, forward))


def peft_lora(shape: str, blocks: int, dropout: float, precision: str = "32-true") -> Contender:
    config = LoraConfig(r=RANK, lora_dropout=dropout, target_modules=TARGETS)
    model = get_peft_model(base_model(shape, blocks), config)
    forward = loss_of(model, precision)
    return Contender("PEFT LoRA", model, forward, trainer_of(model, forward))


def peft_adalora(shape: str, blocks: int, dropout: float, precision: str = "32-true") -> Contender:
    config = AdaLoraConfig(
        init_r=RANK, target_r=8, lora_dropout=dropout, target_modules=TARGETS, total_step=10**6,
        tinit=0, tfinal=10**5, deltaT=10,
    )  # fmt: skip
    model = get_peft_model(base_model(shape, blocks), config)
    plain = loss_of(model, precision)
    taken = [0]

    def forward(tokens: Tensor) -> Tensor:
        orthogonal = []
        for name, parameter in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                rows = parameter if "lora_A" in name else parameter.T
                gram = rows @ rows.T
                orthogonal.append((gram - torch.eye(len(gram))).norm())
        return plain(tokens) + 0.5 * torch.stack(orthogonal).mean()

    def after() -> None:
        taken[0] += 1
        model.base_model.update_and_allocate(taken[0])

    return Contender("PEFT AdaLoRA", model, forward, trainer_of(model, forward, after=after))


class PaperLayer(nn.Module):
    """Eq. 6 in plain operations."""

    def __init__(self, base: nn.Linear, dropout: float) -> None:
        super().__init__()
        self.base, self.dropout = base, nn.Dropout(dropout)
        self.lora_A = nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.lora_B = nn.Parameter(torch.randn(base.out_features, RANK) / RANK**0.5)
        self.lora_c = nn.Parameter(torch.zeros(RANK))

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(self.dropout(x), self.lora_A) * self.lora_c
        return self.base(x) + F.linear(h, self.lora_B) * (8 / RANK)


def authors(shape: str, blocks: int, dropout: float, precision: str = "32-true") -> Contender:
    model = base_model(shape, blocks)
    layers = []
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and any(name.endswith(f".{one}") for one in TARGETS):
            parent, _, child = name.rpartition(".")
            layers.append(PaperLayer(module, dropout))
            setattr(model.get_submodule(parent), child, layers[-1])
    plain = loss_of(model, precision)
    scores = [torch.zeros(RANK) for _ in layers]

    def forward(tokens: Tensor) -> Tensor:
        spread = [one.lora_A.var(dim=1).sum() + one.lora_B.var(dim=0).sum() for one in layers]
        return plain(tokens) + 0.1 * torch.stack(spread).sum() / (RANK * len(layers))

    @torch.no_grad()
    def after() -> None:
        for index, one in enumerate(layers):
            parts = torch.einsum("r,or,ri->roi", one.lora_c, one.lora_B, one.lora_A)
            norms = parts.flatten(1).norm(dim=1) / (parts.sum(0).norm() + 1e-8)
            scores[index] = 0.9 * scores[index] + 0.1 * norms

    return Contender(
        "authors' formulation", model, forward, trainer_of(model, forward, after=after)
    )


def dynarank(shape: str, blocks: int, dropout: float, precision: str = "32-true") -> Contender:
    model = base_model(shape, blocks)
    layers = inject(model, [PATTERN], r=RANK, dropout=dropout)
    mark_trainable(model)
    allocator = RankAllocator(layers, BudgetSchedule(init=RANK, target=8, total=10**6))
    forward = loss_of(model, precision)
    spent = [0.0]

    def timed(call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            start = time.perf_counter()
            call()
            spent[0] += time.perf_counter() - start

        return run

    def add_penalty() -> Tensor:
        return add_dem_gradient(layers, 0.1)

    step = trainer_of(model, forward, before=timed(add_penalty), after=timed(allocator.step))
    contender = Contender("dynarank", model, forward, step)

    def measured(tokens: Tensor) -> None:
        spent[0], start = 0.0, time.perf_counter()
        step(tokens)
        contender.share = spent[0] / (time.perf_counter() - start)

    contender.step = measured
    return contender


def dynarank_frozen(
    shape: str, blocks: int, dropout: float, precision: str = "32-true"
) -> Contender:
    model = base_model(shape, blocks)
    layers = inject(model, [PATTERN], r=RANK, dropout=dropout)
    mark_trainable(model)
    ranks = [8 if index % 2 else 0 for index in range(len(layers))]
    kept = {name: torch.arange(RANK) < rank for name, rank in zip(layers, ranks, strict=True)}
    cut_to_kept(model, kept)
    forward = loss_of(model, precision)
    return Contender("dynarank, frozen, half at rank 0", model, forward, trainer_of(model, forward))


BUILDERS = (bound, peft_lora, peft_adalora, authors, dynarank, dynarank_frozen)
