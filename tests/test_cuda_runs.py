"""Whole runs on a CUDA GPU: their records, their stops, and what their adapters score."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import REPOSITORY, configure, glue_rows, newest_checkpoint, tiny_roberta, write_model

from dynarank.commands.evaluate import main as evaluate
from dynarank.runs.run import run
from dynarank.training.rank_allocation import RankAllocation

sys.path.insert(0, str(Path(__file__).parent / "integrations"))
from door_models import MODELS, TARGETS, Rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")

DEVICE, ACCELERATOR = "cuda", "gpu"
STEPS = ["trainer.epochs=4", "trainer.batch_size=4", "budget.interval=2", "optimizer.lr=0.01"]
"""Ten steps an epoch; the ranks are final after step 20 of 40."""
EVERY = "checkpoint.every_steps=3"


def train(
    folder: Path,
    hub: Path,
    *overrides: str,
    method: str = "dynarank",
    accelerator: str = ACCELERATOR,
) -> Path:
    """Train a run in this process, and return its folder."""
    given = ["task=stsb", f"method={method}", *STEPS, f"trainer.accelerator={accelerator}"]
    run(configure(folder, hub, *given, *overrides))
    return folder


def scores_elsewhere(folder: Path, hub: Path) -> dict[str, float]:
    """Return how a run's adapter scores on the CPU; check that it does so on the GPU, too."""
    rows = folder.parent / "rows.jsonl"
    columns = glue_rows("stsb", 18, 7)  # those that the run was validated on
    lines = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found: dict[str, Any] = {}
    for device in ("cpu", DEVICE):
        output = folder.parent / f"{device}.json"
        named = ["--input", str(rows), "--hub-root", str(hub), "--output", str(output)]
        evaluate([str(folder), *named, "--device", device, "--overwrite"])
        found[device] = json.loads(output.read_text())["metrics"]
    same = pytest.approx(found["cpu"], abs=0.01, nan_ok=True)
    assert found[DEVICE] == same, "the adapter scores otherwise on the GPU than on the CPU"
    scores: dict[str, float] = found["cpu"]
    return scores


def test_the_command_trains_in_bf16(hub_root: Path, tmp_path: Path) -> None:
    given = [f"hydra.run.dir={tmp_path / 'run'}", f"hub.root={hub_root}", "logger=none"]
    kind = [f"trainer={ACCELERATOR}", "task=stsb", "method=dynarank", *STEPS]
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), *kind, *given],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    manifest = max((tmp_path / "run" / "checkpoints").glob("step-*.json")).read_text()
    assert torch.cuda.get_device_name() in manifest
    assert scores_elsewhere(tmp_path / "run", hub_root)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_run_scores_as_its_adapter_does(precision: str, hub_root: Path, tmp_path: Path) -> None:
    given = [f"trainer.precision={precision}", "budget.unit=components"]
    folder = train(tmp_path / "run", hub_root, *given)
    scores = scores_elsewhere(folder, hub_root)
    ranks = json.loads((folder / "ranks.json").read_text())
    assert sum(ranks.values()) == 2 * len(ranks)
    # A tiny model's predictions lie so near to each other that 16 bits show them as one.
    if precision == "32-true":
        record = json.loads((folder / "metrics.json").read_text())
        assert scores == pytest.approx(record["metrics"], abs=0.01, nan_ok=True)


@pytest.mark.parametrize(
    ("method", "score"),
    [("dynarank", "fisher"), ("dora", "relative"), ("dora", "sensitivity")],
)
def test_a_runs_scores_lie_on_the_gpu(
    method: str, score: str, hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores on the CPU would make the host wait for the GPU in every step."""
    devices: set[str] = set()
    log = RankAllocation._log

    def log_and_look(self: RankAllocation, module: Any) -> None:
        devices.add(self.allocator.ema.device.type)
        log(self, module)

    monkeypatch.setattr(RankAllocation, "_log", log_and_look)
    train(tmp_path, hub_root, f"method.score={score}", method=method)
    assert devices == {DEVICE}, f"the scores of a run on a GPU lie on {devices}"


def stopped(folder: Path, hub: Path, after: int, accelerator: str = ACCELERATOR) -> Path:
    """Begin a run that fails after so many steps, and return its folder."""
    steps = iter(range(after))
    original = torch.optim.AdamW.step

    def step(*arguments: Any, **named: Any) -> Any:
        if next(steps, None) is None:
            raise RuntimeError("stopped here")
        return original(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(RuntimeError, match="stopped here"):
            train(folder, hub, EVERY, accelerator=accelerator)
    return folder


def test_a_stopped_run_ends_with_the_same_weights(hub_root: Path, tmp_path: Path) -> None:
    """Stopped before the freeze, and after it, when the layers have been cut."""
    whole = end_of(train(tmp_path / "whole", hub_root, EVERY))
    again = end_of(train(tmp_path / "again", hub_root, EVERY))
    for name, value in whole.items():
        assert torch.equal(again[name], value), f"{name}: two whole runs differ already"
    for after, resumed_at in ((13, 12), (26, 24)):
        folder = stopped(tmp_path / str(after), hub_root, after)
        train(folder, hub_root, EVERY, "resume.path=auto")
        assert json.loads((folder / "metrics.json").read_text())["resumed_at"] == [resumed_at]
        for name, value in end_of(folder).items():
            assert torch.equal(whole[name], value), f"{name}: resumed at {resumed_at}, it differs"


def end_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return the trained weights and masks of a finished run."""
    weights: dict[str, torch.Tensor] = newest_checkpoint(folder)["state_dict"]
    return {name: value.cpu() for name, value in weights.items()}


@pytest.mark.parametrize(("first", "second"), [(ACCELERATOR, "cpu"), ("cpu", ACCELERATOR)])
def test_a_run_goes_on_on_the_other_device(
    first: str, second: str, hub_root: Path, tmp_path: Path
) -> None:
    given = [EVERY, "resume.path=auto", "resume.allow_inexact=true"]
    train(stopped(tmp_path, hub_root, 13, first), hub_root, *given, accelerator=second)
    assert json.loads((tmp_path / "metrics.json").read_text())["resumed_at"] == [12]


@pytest.mark.parametrize("method", ["adalora", "sora", "global_svd", "lora"])
def test_other_methods_train(method: str, hub_root: Path, tmp_path: Path) -> None:
    train(tmp_path, hub_root, method=method)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["metrics"]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapters_of_a_quantized_base_train(kind: str, hub_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    sizes = tiny_roberta(hidden_size=64, intermediate_size=128, num_hidden_layers=1)
    base = write_model(tmp_path / "roberta", sizes)
    train(tmp_path / "run", hub_root, f"model.path={base}", f"model.quantization={kind}")


def test_transformers_trainer_comes_down_to_the_budget(tmp_path: Path) -> None:
    import peft
    from transformers import Trainer, TrainingArguments

    from dynarank.integrations.transformers import RankAllocationCallback

    lora = peft.LoraConfig(r=4, target_modules=TARGETS["bert"], task_type="SEQ_CLS")
    callback = RankAllocationCallback(target=2, interval=2, score="fisher")
    settings = {"max_steps": 12, "bf16": True, "report_to": "none", "save_strategy": "no"}
    trainer = Trainer(
        model=peft.get_peft_model(MODELS["bert"](), lora),
        args=TrainingArguments(str(tmp_path), logging_steps=1, **settings),
        train_dataset=Rows("bert"),
        callbacks=[callback],
    )
    trainer.train()
    assert callback.allocator is not None
    assert callback.allocator.ema.device.type == DEVICE
    assert callback.ranks is not None
    assert sum(callback.ranks.values()) == 2 * len(callback.ranks)
