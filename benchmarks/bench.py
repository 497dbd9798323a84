"""How fast a training step is, side by side with peers from their released packages.

    python benchmarks/bench.py [--shapes minilm roberta] [--lengths 32 128] [--dropouts 0.1 0]
        [--rounds 10] [--blocks 12] [--out bench.md] [--picture bench.svg]

One process holds every contender, and each round times one step of each, so that a disturbance of
the machine meets all of them. A step is forward, backward, clipping and AdamW (fused, for all), on
random tokens and a random model. The contenders:

- bound: the frozen base with gradients through it, no adapter;
- PEFT LoRA and PEFT AdaLoRA (its allocation and its penalty included) at rank r';
- authors: the formulation as the paper writes it, every component of Eq. 7 formed as a matrix;
- dynarank: with DEM and allocator; and after the freeze, cut, with half of the layers at rank 0.

The table holds medians with the quartiles, the ratios to LoRA's and the bound's medians, the bytes
kept for the backward pass, and counts of kernels and of values read on the host.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
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
NO_KERNEL = {
    *("view", "t", "transpose", "expand", "unsqueeze", "squeeze", "select", "slice", "detach"),
    *("alias", "_unsafe_view", "permute", "split", "split_with_sizes", "unbind", "diagonal"),
    *("empty", "empty_like", "_reshape_alias", "as_strided", "_local_scalar_dense"),
}
Step = Callable[[Tensor], Any]


class Counts(TorchDispatchMode):
    """Counts the operations that compute something, and the values read on the host."""

    kernels = 0
    readings = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.kernels += name not in NO_KERNEL
        self.readings += name == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


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


def loss_of(model: nn.Module) -> Step:
    """Return a loss whose gradient goes through the whole model, the bound's too."""
    inner = getattr(model, "base_model", model)
    embeddings = getattr(inner, "model", inner).embeddings
    embeddings.register_forward_hook(lambda _, __, output: output.requires_grad_())
    return lambda tokens: model(input_ids=tokens).last_hidden_state.square().mean()


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


def bound(shape: str, blocks: int, dropout: float) -> Contender:
    model = base_model(shape, blocks)
    forward = loss_of(model)
    return Contender("bound", model, forward, trainer_of(model, forward))


def peft_lora(shape: str, blocks: int, dropout: float) -> Contender:
    config = LoraConfig(r=RANK, lora_dropout=dropout, target_modules=TARGETS)
    model = get_peft_model(base_model(shape, blocks), config)
    forward = loss_of(model)
    return Contender("PEFT LoRA", model, forward, trainer_of(model, forward))


def peft_adalora(shape: str, blocks: int, dropout: float) -> Contender:
    config = AdaLoraConfig(
        init_r=RANK, target_r=8, lora_dropout=dropout, target_modules=TARGETS, total_step=10**6,
        tinit=0, tfinal=10**5, deltaT=10,
    )  # fmt: skip
    model = get_peft_model(base_model(shape, blocks), config)
    plain = loss_of(model)
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


def authors(shape: str, blocks: int, dropout: float) -> Contender:
    model = base_model(shape, blocks)
    layers = []
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and any(name.endswith(f".{one}") for one in TARGETS):
            parent, _, child = name.rpartition(".")
            layers.append(PaperLayer(module, dropout))
            setattr(model.get_submodule(parent), child, layers[-1])
    plain = loss_of(model)
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


def dynarank(shape: str, blocks: int, dropout: float) -> Contender:
    model = base_model(shape, blocks)
    layers = inject(model, [PATTERN], r=RANK, dropout=dropout)
    mark_trainable(model)
    allocator = RankAllocator(layers, BudgetSchedule(init=RANK, target=8, total=10**6))
    forward = loss_of(model)
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


def dynarank_frozen(shape: str, blocks: int, dropout: float) -> Contender:
    model = base_model(shape, blocks)
    layers = inject(model, [PATTERN], r=RANK, dropout=dropout)
    mark_trainable(model)
    ranks = [8 if index % 2 else 0 for index in range(len(layers))]
    kept = {name: torch.arange(RANK) < rank for name, rank in zip(layers, ranks, strict=True)}
    cut_to_kept(model, kept)
    forward = loss_of(model)
    return Contender("dynarank, frozen, half at rank 0", model, forward, trainer_of(model, forward))


BUILDERS = (bound, peft_lora, peft_adalora, authors, dynarank, dynarank_frozen)


def count(contender: Contender, tokens: Tensor) -> None:
    """Count what a step takes: bytes kept for backward, kernels, values read on the host."""
    kept: dict[int, int] = {}
    weights = {one.untyped_storage().data_ptr() for one in contender.model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = contender.forward(tokens)
    contender.kept = sum(kept.values()) / MIB
    del loss
    with Counts() as counts:
        contender.step(tokens)
    contender.counts = (counts.kernels, counts.readings)


def compare(shape: str, blocks: int, length: int, dropout: float, rounds: int) -> list[Contender]:
    """Measure every contender, in turn, in every round."""
    tokens = torch.randint(5, 1000, (BATCH, length))
    contenders = [build(shape, blocks, dropout) for build in BUILDERS]
    for contender in contenders:
        contender.step(tokens)  # moments and caches are made here
        count(contender, tokens)
    shares = []
    for _ in range(rounds):
        for contender in contenders:
            start = time.perf_counter()
            contender.step(tokens)
            contender.times.append(time.perf_counter() - start)
        shares += [one.share for one in contenders if one.share]
    for contender in contenders:
        contender.share = statistics.median(shares) if contender.name == "dynarank" else 0.0
    return contenders


def table(title: str, contenders: list[Contender]) -> list[str]:
    """Return one comparison as a Markdown table."""
    medians = {one.name: statistics.median(one.times) for one in contenders}
    lines = [
        f"**{title}**",
        "",
        "| | ms (quartiles) | of LoRA | of bound | kept, MiB above bound | kernels | read |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in contenders:
        low, _, high = statistics.quantiles(one.times, n=4)
        figures = [
            f"{1000 * medians[one.name]:.0f} ({1000 * low:.0f} to {1000 * high:.0f})",
            f"{medians[one.name] / medians['PEFT LoRA']:.2f}",
            f"{medians[one.name] / medians['bound']:.2f}",
            f"{one.kept - contenders[0].kept:.1f}",
            *(str(number) for number in one.counts),
        ]
        lines.append(f"| {one.name} | {' | '.join(figures)} |")
    share = next(one.share for one in contenders if one.name == "dynarank")
    return [*lines, "", f"Allocator and DEM take {100 * share:.1f} % of dynarank's step.", ""]


def draw(results: dict[str, list[Contender]], path: Path) -> None:
    """Draw the ratios to LoRA, one group of bars a comparison."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 1.2 * len(results)), layout="constrained")
    axes = figure.subplots(len(results), squeeze=False)[:, 0]
    for axis, (title, contenders) in zip(axes, results.items(), strict=True):
        medians = {one.name: statistics.median(one.times) for one in contenders}
        ratios = [value / medians["PEFT LoRA"] for value in medians.values()]
        bars = axis.barh(list(medians), ratios, color="#4477aa")
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.invert_yaxis()
        axis.set_title(title, fontsize="medium", loc="left")
        axis.axvline(1, color="black", linewidth=0.8)
    axes[-1].set_xlabel("time of a step, of PEFT LoRA's")
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["minilm", "roberta"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--dropouts", nargs="+", type=float, default=[0.1, 0.0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("bench.md"))
    parser.add_argument("--picture", type=Path, default=Path("bench.svg"))
    given = parser.parse_args(arguments)
    results: dict[str, list[Contender]] = {}
    lines = [
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {given.blocks} blocks, "
        f"r' = {RANK}, medians of {given.rounds} interleaved rounds.",
        "",
    ]
    for shape in given.shapes:
        for length in given.lengths:
            for dropout in given.dropouts:
                title = f"{shape}, {BATCH} x {length} tokens, dropout {dropout:g}"
                results[title] = compare(shape, given.blocks, length, dropout, given.rounds)
                lines += table(title, results[title])
    given.out.write_text("\n".join(lines))
    draw(results, given.picture)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
