"""Kill a process that saves again and again, at random moments: afterwards there must always be a
whole checkpoint.

    python benchmarks/kills_in_saves.py DIR --kills 200 --tmpdir /dev/shm

With --tmpdir on another file system than DIR, what stages files in TMPDIR would be found out. It
prints how many kills left
something half written, so that one sees that they fell into saves. The exit code is 1 where no
checkpoint was whole.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from dynarank.checkpoints.storage import (
    DurableIO,
    Manifest,
    checkpoint_path,
    newest_valid,
    read_checkpoint,
    remove_all_but,
    seal,
)

VALUES = 300_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--tmpdir", default=tempfile.gettempdir())
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["TMPDIR"] = tempfile.tempdir = options.tmpdir
    shutil.rmtree(options.folder, ignore_errors=True)
    draw, counts, step = random.Random(options.seed), Counter[str](), 0
    save(options.folder, step)
    for _ in range(options.kills):
        kill_while_saving(options.folder, step + 1, draw.uniform(0, 0.2))
        counts["left half written"] += bool(
            newest_valid(options.folder)[2] or list(options.folder.glob("*.tmp"))
        )
        step = check(options.folder, step)
    print(f"{options.kills} kills, {dict(counts)}, {step} steps saved: always a whole checkpoint")


def save(folder: Path, step: int) -> None:
    """As a run does: write, seal, remove what is no longer kept."""
    path = checkpoint_path(folder, step)
    DurableIO().save_checkpoint({"step": step, "values": torch.full((VALUES,), float(step))}, path)
    seal(path, Manifest(step, 0, False, 0, 0.0, None, {}, [], []))
    remove_all_but(folder, {step, step - 1})


def kill_while_saving(folder: Path, first: int, seconds: float) -> None:
    """Save in a process of its own, which is killed after that long."""
    process = os.fork()
    if process == 0:
        for step in range(first, sys.maxsize):
            save(folder, step)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def check(folder: Path, before: int) -> int:
    """The step of the newest whole checkpoint; the exit is 1 where there is none, or it holds
    something else."""
    path, manifest, skipped = newest_valid(folder)
    if path is None or manifest is None or manifest.step < before:
        sys.exit(f"no whole checkpoint from step {before} on in {folder}: {skipped}")
    content = read_checkpoint(path)
    if content["step"] != manifest.step or not bool((content["values"] == manifest.step).all()):
        sys.exit(f"{path} is not what was saved")
    return manifest.step


if __name__ == "__main__":
    main()
