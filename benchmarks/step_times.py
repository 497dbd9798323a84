"""Time a training step of every contender in turn, and count what it takes.

One process holds every contender, and each round times one step of each, so that a disturbance of
the machine meets all of them. The table holds medians with the quartiles, the ratios to LoRA's and
the bound's medians, the bytes kept for the backward pass, and counts of kernels and of values read
on the host.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from step_contenders import BATCH, BUILDERS, MIB, Contender
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NO_KERNEL = {
    *("view", "t", "transpose", "expand", "unsqueeze", "squeeze", "select", "slice", "detach"),
    *("alias", "_unsafe_view", "permute", "split", "split_with_sizes", "unbind", "diagonal"),
    *("empty", "empty_like", "_reshape_alias", "as_strided", "_local_scalar_dense"),
}


class Counts(TorchDispatchMode):
    """Counts the operations that compute something, and the values read on the host."""

    kernels = 0
    readings = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.kernels += name not in NO_KERNEL
        self.readings += name == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


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


def compare(
    shape: str, blocks: int, length: int, dropout: float, rounds: int, precision: str = "32-true"
) -> list[Contender]:
    """Measure every contender, in turn, in every round."""
    tokens = torch.randint(5, 1000, (BATCH, length))
    contenders = [build(shape, blocks, dropout, precision) for build in BUILDERS]
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
        axis.margins(x=0.12)  # room for the last label
        axis.invert_yaxis()
        axis.set_title(title, fontsize="medium", loc="left")
        axis.axvline(1, color="black", linewidth=0.8)
    axes[-1].set_xlabel("time of a step, of PEFT LoRA's")
    figure.savefig(path)
