"""Kill a run at random moments until it ends, and compare it with one that was left alone.

It does so again and again until the time is over.

    python benchmarks/soak.py DIR --minutes 60 --mean 45 -- \
        model=minilm task=mrpc budget=r8 trainer.epochs=2 ...

The moments are exponentially distributed, so they fall into loading, steps, validation, saves and
the end. Two of three such kills are SIGKILL, the third SIGTERM. One start in three is aimed
instead:
it dies in a write of the history, of a checkpoint, of the export or of the results. After every
fifth, a bit of the newest checkpoint is flipped, and after every fifth, metrics.csv is cut short.
DIR/soak.json holds the counts, and the exit code is 1 where a killed run ended otherwise than the
unbroken one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
AIMS = {
    "history": ("dynarank.training.history_file", "write_text", 6),
    "flush": ("dynarank.durable_files", "sync_folder", 30),
    "checkpoint": ("dynarank.checkpoints.storage", "file_sha256", 8),
    "export": ("dynarank.runs.export", "move_file", 6),
    "results": ("dynarank.runs.results", "write_json", 2),
}
"""Functions in which a start may die, and how often they are called at most before it does."""
FILES = (
    "metrics.csv",
    "ranks.json",
    "rank_history.json",
    "adapter/adapter_model.safetensors",
    "adapter/trained.safetensors",
    "adapter/adapter_config.json",
    "adapter/tokenizer.json",
    "adapter/dynarank.json",
)
TIMES = ("seconds", "output_dir", "resumed_at")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="how long to go on killing")
    parser.add_argument("--mean", type=float, default=45, help="mean seconds from start to kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="+")
    options = parser.parse_args()
    draw, counts = random.Random(options.seed), Counter[str]()
    unbroken = options.folder / "unbroken"
    if not (unbroken / "metrics.json").is_file():
        assert start(unbroken, options.overrides).wait() == 0, (
            f"the unbroken run failed: {unbroken}/output.txt"
        )
    begin, differing = time.monotonic(), []
    while time.monotonic() - begin < 60 * options.minutes and not differing:
        broken = options.folder / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        while not (broken / "metrics.json").is_file():
            disturb(broken, options.overrides, options.mean, draw, counts)
        counts["runs ended"] += 1
        differing = compare(unbroken, broken)
        summary = {
            "minutes": round((time.monotonic() - begin) / 60, 1),
            **counts,
            "differing": differing,
        }
        (options.folder / "soak.json").write_text(json.dumps(summary, indent=2) + "\n")
        print(summary, flush=True)
    sys.exit(1 if differing else 0)


def start(
    folder: Path, overrides: list[str], aim: tuple[str, int] | None = None
) -> subprocess.Popen[bytes]:
    """Start the run, which goes on where it stopped; with an aim, it kills itself there."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [*overrides, f"hydra.run.dir={folder}", "resume=auto"]
    command = [sys.executable, str(TRAIN), *arguments]
    if aim is not None:
        here = str(Path(__file__).resolve().parent)
        program = f"import sys; sys.path.insert(0, {here!r}); import soak; soak.train_until_aim()"
        command = [sys.executable, "-c", program, aim[0], str(aim[1]), *arguments]
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)


def train_until_aim() -> None:
    """Train as train.py does, and die before the n-th call of a function. Reads sys.argv."""
    name, number, *arguments = sys.argv[1:]
    module_name, function, _ = AIMS[name]
    module = importlib.import_module(module_name)
    original, calls = getattr(module, function), [0]

    def deadly(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*given, **named)

    setattr(module, function, deadly)
    sys.argv = [str(TRAIN), *arguments]
    runpy.run_path(str(TRAIN), run_name="__main__")


def disturb(
    folder: Path, overrides: list[str], mean: float, draw: random.Random, counts: Counter[str]
) -> None:
    """Start the run once and kill it, unless it ends before."""
    aim = None
    if draw.random() < 1 / 3:
        name = draw.choice(sorted(AIMS))
        aim = (name, draw.randint(1, AIMS[name][2]))
        counts[f"aimed at {name}"] += 1
    process = start(folder, overrides, aim)
    number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    try:
        code = process.wait(None if aim else draw.expovariate(1 / mean))
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        code = process.wait()
    counts[f"starts that ended with {code}"] += 1
    assert code in (0, -9, -15, 143), (
        f"exit code {code}: {folder}/output.txt"
    )  # -15: before the handlers were there
    checkpoints = sorted((folder / "checkpoints").glob("*.ckpt"))
    if code and len(checkpoints) > 1 and draw.random() < 0.2:
        content = bytearray(checkpoints[-1].read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        checkpoints[-1].write_bytes(content)
        counts["checkpoints damaged"] += 1
    history = folder / "metrics.csv"
    if code and history.is_file() and draw.random() < 0.2:
        content = history.read_bytes()
        history.write_bytes(content[: draw.randrange(len(content) + 1)])
        counts["histories cut short"] += 1


def compare(one: Path, other: Path) -> list[str]:
    """Names of what differs."""
    differing = [
        n
        for n in FILES
        if (one / n).is_file() and (one / n).read_bytes() != (other / n).read_bytes()
    ]
    records = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    differing += [
        key for key in records[0] if key not in TIMES and records[0][key] != records[1][key]
    ]
    states = [
        torch.load(max((f / "checkpoints").glob("*.ckpt")), weights_only=True) for f in (one, other)
    ]
    return differing + [key for key in states[0] if not alike(states[0][key], states[1][key])]


def alike(a: Any, b: Any) -> bool:
    """Equal to the bit, NaN to NaN."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(
            a.cpu().reshape(-1).view(torch.uint8), b.cpu().reshape(-1).view(torch.uint8)
        )
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b or (a != a and b != b))


if __name__ == "__main__":
    main()
