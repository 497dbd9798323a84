"""What allocator and DEM cost on the factors of large models: no base weights, no forward pass.

    python benchmarks/factor_costs.py

Legend: L adapted matrices, r' components of each. Time and peak memory should grow as the factors
do, linearly in L and in the matrices' widths.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from torch import nn

from dynarank import BudgetSchedule, DoRALinear, RankAllocator
from dynarank.allocation.dem import add_dem_gradient

RANK, MIB = 16, 2**20
LLAMA: dict[str, tuple[int, int, int, int]] = {
    "LLaMA-7B, a quarter of it": (8, 4096, 4096, 11008),
    "LLaMA-7B": (32, 4096, 4096, 11008),
    "LLaMA-70B": (80, 8192, 1024, 28672),
}
"""Blocks, width, width of keys and values, width of the feed-forward."""


def factors(blocks: int, width: int, key: int, inner: int) -> dict[str, DoRALinear]:
    """Return adapters whose base maps hold one number each, gradients of ones included."""
    sizes = [(width, width), (width, key), (width, key), (width, width)]
    sizes += [(width, inner), (width, inner), (inner, width)]
    layers = {}
    for block in range(blocks):
        for index, (d_in, d_out) in enumerate(sizes):
            base = nn.Linear(d_in, d_out, bias=False, device="meta")
            base.weight = nn.Parameter(torch.zeros(1).expand(d_out, d_in), requires_grad=False)
            layer = DoRALinear(base, r=RANK)
            nn.init.ones_(layer.lora_c)
            for parameter in (layer.lora_A, layer.lora_B, layer.lora_c):
                parameter.grad = torch.ones_like(parameter)
            layers[f"{block}.{index}"] = layer
    return layers


def peak_above(call: object, repeats: int = 5) -> tuple[float, float]:
    """Return a call's median milliseconds and its peak of memory above the start, in MiB.

    The peak is of the process, as Linux counts it; NaN elsewhere.
    """
    assert callable(call)
    call()
    before = _memory("VmRSS")
    reset = Path("/proc/self/clear_refs")
    if reset.is_file():
        reset.write_text("5")  # the peak begins anew
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times), _memory("VmHWM") - before


def _memory(name: str) -> float:
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    line = next(one for one in status.read_text().splitlines() if one.startswith(name))
    return int(line.split()[1]) / 1024


def factor_costs() -> list[str]:
    """Return the table's lines."""
    lines = [
        f"| r' = {RANK}, factors alone | matrices | factors, MiB | allocator, ms | DEM, ms | "
        "ms for each 100 MiB | peak above, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, shape in LLAMA.items():
        blocks, width, key, inner = shape
        layers = factors(blocks=blocks, width=width, key=key, inner=inner)
        schedule = BudgetSchedule(init=RANK, target=8, total=10**6)
        allocator = RankAllocator(layers, schedule)
        size = sum(one.lora_A.nbytes + one.lora_B.nbytes for one in layers.values()) / MIB
        step, step_peak = peak_above(allocator.step)
        dem, dem_peak = peak_above(lambda layers=layers: add_dem_gradient(layers, 0.1))
        figures = [
            str(len(layers)),
            f"{size:.0f}",
            f"{step:.0f}",
            f"{dem:.0f}",
            f"{100 * (step + dem) / size:.1f}",
            f"{max(step_peak, dem_peak):.0f}",
        ]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(factor_costs()))
