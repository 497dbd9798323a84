"""method=lora on task=instruct against TRL's SFTTrainer with plain LoRA: the same training."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import sums, write_language_model, write_lines
from tiny import configure
from transformers import AutoModelForCausalLM, AutoTokenizer

from dynarank.methods.lora import LoRA
from dynarank.methods.ranked import ADAPTER
from dynarank.runs.prepare import prepare
from dynarank.runs.run import run

ROWS = 24
STEPS = 8
LR = 0.01
RANK, ALPHA = 2, 16


def conversations() -> list[dict[str, Any]]:
    """Prompts and completions in TRL's form of conversations."""
    rows = []
    for row in sums(ROWS):
        rows.append(
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
        )
    return rows


def train_here(folder: Path, base: Path) -> tuple[list[float], dict[str, Any]]:
    """Return the loss of each step, and A and B at the start, by layer."""
    file = write_lines(folder / "rows.jsonl", sums(ROWS))

    def configured(name: str) -> Any:
        return configure(
            folder / name,
            folder,
            "task=instruct",
            f"model.path={base}",
            f"task.train_file={file}",
            f"task.validation_file={file}",
            "method=lora",
            "method.dropout=0",
            f"method.alpha={ALPHA}",
            f"budget.target={RANK}",
            "dem=off",
            f"optimizer.lr={LR}",
            "optimizer.warmup=0",
            f"trainer.batch_size={ROWS}",  # one batch holds all, in whichever order
            f"trainer.epochs={STEPS}",
        )

    start = prepare(configured("start"), folder / "start").method
    assert isinstance(start, LoRA)
    before = {}
    for name, layer in start.layers.items():
        pair = (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
        before[name] = tuple(part.detach().clone() for part in pair)
    run(configured("run"))
    with (folder / "run/metrics.csv").open() as lines:
        losses = [float(row["train/loss"]) for row in csv.DictReader(lines) if row["train/loss"]]
    return losses, before


def train_by_trl(folder: Path, base: Path, start: dict[str, Any]) -> tuple[list[float], Any]:
    """Return the loss of each step, and the trained model, from the same A and B."""
    from datasets import Dataset
    from peft import LoraConfig

    trl = pytest.importorskip("trl")
    settings = trl.SFTConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=ROWS,
        max_steps=STEPS,
        learning_rate=LR,
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=0.01,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        completion_only_loss=True,
        disable_tqdm=True,
    )
    lora = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=list(start),
        task_type="CAUSAL_LM",
    )
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=settings,
        train_dataset=Dataset.from_list(conversations()),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=lora,
    )
    inner = trainer.model.get_base_model()
    with torch.no_grad():
        for name, (lora_A, lora_B) in start.items():
            layer = inner.get_submodule(name)
            layer.lora_A["default"].weight.copy_(lora_A)
            layer.lora_B["default"].weight.copy_(lora_B)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer.model.eval()


def test_sft_trainer_has_the_same_losses_and_ends_at_the_same_model(tmp_path: Path) -> None:
    import peft

    pytest.importorskip("trl")
    base = write_language_model(tmp_path / "base")
    losses, start = train_here(tmp_path, base)
    wanted, model = train_by_trl(tmp_path, base, start)
    assert len(losses) == len(wanted) == STEPS
    assert losses[-1] < losses[0] - 0.05
    assert losses == pytest.approx(wanted, abs=2e-4)
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        bare = plain(input_ids=ids).logits
        ours = peft.PeftModel.from_pretrained(plain, str(tmp_path / "run/adapter")).eval()
        logits = ours(input_ids=ids).logits
        theirs = model(input_ids=ids).logits
    assert float((theirs - bare).abs().max()) > 0.1  # it has learned something
    torch.testing.assert_close(logits, theirs, atol=1e-3, rtol=0)
