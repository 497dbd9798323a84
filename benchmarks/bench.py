"""How fast it is, side by side with peers from their released packages.

    python benchmarks/bench.py [--parts steps factors runs sweep] [--out bench.md]
        [--picture bench.svg]

- steps: one training step of each contender, interleaved (`step_contenders.py`, `step_times.py`);
- factors: allocator and DEM alone, on the factors of LLaMA-7B and 70B (`factor_costs.py`);
- runs: whole runs beside transformers' Trainer (`whole_run.py`);
- sweep: two runs of a sweep side by side (`sweep_pair.py`).

The contenders of a step are: the bound (the frozen base with gradients through it, no adapter);
PEFT LoRA and PEFT AdaLoRA (its allocation and its penalty included) at rank r'; the authors'
formulation as the paper writes it, every component of Eq. 7 formed as a matrix; dynarank with DEM
and allocator; and dynarank after the freeze, cut, with half of the layers at rank 0.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
from pathlib import Path

import torch
from factor_costs import factor_costs
from step_contenders import BATCH, PRECISIONS, RANK, SHAPES
from step_times import compare, draw, table
from sweep_pair import sweep_pair
from whole_run import compare as compare_runs

PARTS = ("steps", "factors", "runs", "sweep")
VECTOR_UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")


def machine() -> str:
    """Return the processor's name, its vector units and what torch computes with."""
    name, flags = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        text = info.read_text()
        if match := re.search(r"model name\s*: (.*)", text):
            name = match[1]
        if match := re.search(r"(?:flags|Features)\s*: (.*)", text):
            flags = match[1]
    units = [unit for unit in VECTOR_UNITS if unit in flags.split()]
    return f"{name} ({', '.join(units) or 'vector units unknown'}), torch {torch.__version__}"


def step_part(given: argparse.Namespace) -> list[str]:
    """Return the tables of training steps, and draw their picture."""
    results = {}
    lines = [f"{given.blocks} blocks, r' = {RANK}, medians of {given.rounds} rounds.", ""]
    for shape in given.shapes:
        for length in given.lengths:
            for dropout in given.dropouts:
                for precision in given.precisions:
                    title = f"{shape}, {BATCH} x {length} tokens, dropout {dropout:g}, {precision}"
                    results[title] = compare(
                        shape, given.blocks, length, dropout, given.rounds, precision
                    )
                    lines += table(title, results[title])
    draw(results, given.picture)
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the tables and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["minilm", "roberta"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--dropouts", nargs="+", type=float, default=[0.1, 0.0])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["32-true"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--rows", type=int, default=1200, help="of a whole run")
    parser.add_argument("--run-rounds", type=int, default=3, help="of the whole runs")
    parser.add_argument("--out", type=Path, default=Path("bench.md"))
    parser.add_argument("--picture", type=Path, default=Path("bench.svg"))
    given = parser.parse_args(arguments)
    today = datetime.date.today()
    lines = [f"{today}, {machine()}, {torch.get_num_threads()} threads.", ""]
    if "steps" in given.parts:
        lines += step_part(given)
    if "factors" in given.parts:
        lines += [*factor_costs(), ""]
    if "runs" in given.parts:
        lines += [*compare_runs(given.rows, given.run_rounds), ""]
    if "sweep" in given.parts:
        lines += [*sweep_pair(), ""]
    given.out.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
