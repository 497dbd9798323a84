"""The callback in transformers' Trainer: at budget at the end, and resumed to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import batch, lora

from dynarank.integrations.transformers import RankAllocationCallback

transformers = pytest.importorskip("transformers")


class Stop(transformers.TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 7:
            raise InterruptedError


def trainer(folder: Path, *extra: Any, score: str = "relative") -> Any:
    rows = []
    for seed in range(8):
        whole = batch("bert", seed)
        for row in range(4):
            rows.append({key: value[row] for key, value in whole.items()})
    torch.manual_seed(3)
    model = lora("bert", lora_dropout=0.1)
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=12,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        save_steps=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    callback = RankAllocationCallback(target=3, final=0.3, interval=2, score=score)
    return transformers.Trainer(
        model=model, args=args, train_dataset=rows, callbacks=[callback, *extra]
    )


@pytest.mark.parametrize("score", ["relative", "sensitivity"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, score: str) -> None:
    whole = trainer(tmp_path / "whole", score=score)
    whole.train()
    with pytest.raises(InterruptedError):
        trainer(tmp_path / "parts", Stop(), score=score).train()
    resumed = trainer(tmp_path / "parts", score=score)
    resumed.train(resume_from_checkpoint=True)
    expected, state = whole.model.state_dict(), resumed.model.state_dict()
    assert expected.keys() == state.keys()
    for key, tensor in expected.items():
        assert torch.equal(tensor, state[key]), key
    ranks = whole.model.peft_config["default"].rank_pattern
    assert sum(ranks.values()) == 3 * 6
    assert not [key for key in state if "parametrizations" in key]
