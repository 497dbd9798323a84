"""Time training steps of a causal language model on an accelerator, beside PEFT's methods.

    python benchmarks/gpu_steps.py [--parts steps layer] [--sizes 1b 8b] [--ranks 16]
        [--dropouts 0.05 0] [--blocks 4] [--checkpointing] [--out gpu_steps.md]
    python benchmarks/gpu_steps.py --device cpu --sizes tiny --batch 2 --length 32 --rows 64

- steps: whole training steps (forward, backward, clipping, fused AdamW, allocation) of a few blocks
  of Llama's form with random weights, frozen and in bfloat16. All seven linear maps of a block are
  adapted. Adapters are float32, and the forward pass is under autocast to bfloat16, for all.
- layer: forward and backward of one adapted linear map, in the forms that the layer has.

The bound is the frozen base with gradients through it and no adapter. The contenders take turns:
in each round a contender takes some steps one after another, as in training. The first of them
fills the device's queue and gives the host's time alone; times are medians of the others, with
quartiles. One step in ten of AdaLoRA's prunes, and none of dynarank's that is timed here, so
the medians are of steps that do not prune. Memory is a step's peak with all that the contender
holds. "Read" counts copies to the host, each of which waits for the device.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from gpu_contenders import SIZES, STEP_BUILDERS, Build, Contender, Setting, layer_builders
from step_contenders import MIB
from torch.profiler import ProfilerActivity, profile

PARTS = ("steps", "layer")
WARM_UP = 5


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def count(step: Callable[[], Any]) -> tuple[int, int]:
    """Return a step's kernels, and its copies from the device to the host."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize()
    names = []
    for event in profiled.events() or []:
        on_device = event.device_type.name == "CUDA"
        if on_device and not getattr(event, "is_user_annotation", False):
            names.append(event.name)
    kernels = [name for name in names if not name.startswith(("Memcpy", "Memset"))]
    return len(kernels), sum(name.startswith("Memcpy DtoH") for name in names)


def prepare(build: Build, device: str) -> Contender:
    """Return a contender with its memory and its kernels measured, warm."""
    gc.collect()  # what others left in cycles is not this one's
    before = allocated(device)
    contender = build()
    contender.step()  # moments and caches are made here
    gc.collect()
    synchronize(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        contender.step()
        synchronize(device)
        # Without what the contenders before it hold.
        contender.peak = (torch.cuda.max_memory_allocated() - before) / MIB
        contender.counts = count(contender.step)
    for _ in range(WARM_UP):
        contender.step()
    return contender


def time_on_gpu(contender: Contender, steps: int) -> None:
    """Time steps that follow each other by the device's own clock."""
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    start = time.perf_counter()
    contender.step()
    contender.host.append(time.perf_counter() - start)
    for mark in marks[:-1]:
        mark.record()
        contender.step()
    marks[-1].record()
    torch.cuda.synchronize()
    # The first step began with an empty queue, which no step of a training does.
    for begin, end in pairwise(marks):
        contender.times.append(begin.elapsed_time(end) / 1000)


def time_on_cpu(contender: Contender, steps: int) -> None:
    for _ in range(steps):
        start = time.perf_counter()
        contender.step()
        contender.times.append(time.perf_counter() - start)
    contender.host = contender.times


def compare(builds: Iterable[Build], given: argparse.Namespace) -> list[Contender]:
    """Measure the contenders, in turn, in every round. One that fails is left out, and told."""
    contenders = []
    for build in builds:
        try:
            contenders.append(prepare(build, given.device))
        # Of any kind: memory may be short, or a compiler missing.
        except Exception as error:
            name = getattr(build, "func", build).__name__
            print(f"left out: {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
    time_steps = time_on_gpu if given.device == "cuda" else time_on_cpu
    for _ in range(given.rounds):
        for contender in contenders:
            time_steps(contender, given.steps)
    return contenders


def table(title: str, contenders: list[Contender]) -> list[str]:
    """Return one comparison as a Markdown table."""
    medians = {one.name: statistics.median(one.times) for one in contenders}
    peaks = {one.name: one.peak for one in contenders}
    lines = [
        f"**{title}**",
        "",
        "| | ms (quartiles) | of LoRA | of bound | host, ms | peak, MiB above bound | kernels "
        "| read |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in contenders:
        low, middle, high = (1000 * part for part in statistics.quantiles(one.times, n=4))
        on_device = ["", "", ""]
        if one.peak >= 0:
            above = one.peak - peaks.get("bound", math.nan)
            on_device = [f"{above:.0f}", *(str(number) for number in one.counts)]
        figures = [
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{medians[one.name] / medians.get('PEFT LoRA', math.nan):.2f}",
            f"{medians[one.name] / medians.get('bound', math.nan):.2f}",
            f"{1000 * statistics.median(one.host):.2f}",
            *on_device,
        ]
        lines.append(f"| {one.name} | {' | '.join(figures)} |")
    return [*lines, ""]


def comparisons(given: argparse.Namespace) -> Iterator[tuple[str, Iterable[Build]]]:
    """Yield the title and the contenders of each table."""
    if "steps" in given.parts:
        tokens = f"{given.batch} x {given.length} tokens, {given.blocks} blocks"
        if given.checkpointing:
            tokens += ", gradient checkpointing"
        for size, rank, dropout in product(given.sizes, given.ranks, given.dropouts):
            setting = Setting(size, rank, dropout, given)
            builds = [partial(build, setting) for build in STEP_BUILDERS]
            yield f"{size}, {tokens}, r {rank}, dropout {dropout:g}", builds
    if "layer" in given.parts:
        hidden, inner, _, _ = SIZES[given.sizes[-1]]
        for d_out, rank, dropout in product((hidden, inner), given.ranks, given.dropouts):
            setting = Setting(given.sizes[-1], rank, dropout, given)
            title = f"{hidden} to {d_out}, {given.rows} rows, r {rank}, dropout {dropout:g}"
            yield f"one layer, {title}", layer_builders(setting, hidden, d_out)


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    versions = (
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"PEFT {peft.__version__}"
    )
    return f"{name}, {versions}"


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write each table as soon as it is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1b", "8b"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[16])
    parser.add_argument("--dropouts", nargs="+", type=float, default=[0.05, 0.0])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=8192, help="of the one layer's input")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help="timed in each round")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("gpu_steps.md"))
    given = parser.parse_args(arguments)

    lines = [f"{machine(given.device)}; {given.rounds} rounds of {given.steps} steps.", ""]
    if given.device == "cuda":
        # The libraries' workspaces are made here, so that no contender is charged with them.
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            square = torch.randn(64, 64, device="cuda", dtype=dtype, requires_grad=True)
            (square @ square).sum().backward()
    for title, builds in comparisons(given):
        start = time.perf_counter()
        lines += table(title, compare(builds, given))
        given.out.write_text("\n".join(lines))
        print(f"{title}: {time.perf_counter() - start:.0f} s", flush=True)
        if given.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    print("\n".join(lines))


if __name__ == "__main__":
    main()
