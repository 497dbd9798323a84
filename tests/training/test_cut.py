"""At the freeze a run is cut: what it computes stays, and what it holds and saves shrinks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import configure, newest_checkpoint, tiny_roberta, write_model

from dynarank.adapters.inject import adapter_layers
from dynarank.checkpoints.content import RunContent
from dynarank.checkpoints.storage import checkpoint_path
from dynarank.errors import UserError
from dynarank.runs.prepare import prepare
from dynarank.runs.run import run
from dynarank.training import rank_allocation
from dynarank.training.module import FineTuning

SETTINGS = ["task=stsb", "budget.interval=1", "optimizer.lr=0.02", "trainer.epochs=5"]
SETTINGS += ["budget.target=1", "budget.init=3"]
"""T = 15, frozen after step 8: seven steps follow the cut."""


def records(folder: Path) -> tuple[list[float], dict[str, Any]]:
    """Every step's loss, and the final record."""
    rows = csv.DictReader((folder / "metrics.csv").open())
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    record = json.loads((folder / "metrics.json").read_text())
    return losses, {**record, "ranks": json.loads((folder / "ranks.json").read_text())}


def test_without_dropout_a_cut_run_computes_what_a_masked_one_does(
    hub_root: Path, tmp_path: Path
) -> None:
    sizes = tiny_roberta(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = f"model.path={write_model(tmp_path / 'model', sizes)}"
    settings = [*SETTINGS, model, "method.dropout=0", "trainer.log_every=1", "trainer.ema=0.8"]
    run(configure(tmp_path / "cut", hub_root, *settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_allocation, "cut_run", lambda *_: None)
        run(configure(tmp_path / "masked", hub_root, *settings))
    cut_losses, cut = records(tmp_path / "cut")
    masked_losses, masked = records(tmp_path / "masked")
    assert len(cut_losses) == 15
    assert cut_losses[:8] == masked_losses[:8]
    assert cut_losses == pytest.approx(masked_losses, rel=1e-5)
    assert cut["metrics"] == pytest.approx(masked["metrics"], abs=2e-3)
    assert cut["ranks"] == masked["ranks"]
    assert 0 in cut["ranks"].values()
    assert cut["adapter_parameters"] == masked["adapter_parameters"]
    small, large = (newest_checkpoint(tmp_path / kind) for kind in ("cut", "masked"))
    name, rank = next((name, rank) for name, rank in cut["ranks"].items() if 0 < rank < 3)
    for part in ("state_dict", "average"):
        was = large[part][f"model.{name}.lora_A"]
        kept = large["state_dict"][f"model.{name}.mask"]
        assert torch.allclose(small[part][f"model.{name}.lora_A"], was[kept], atol=1e-5)
        assert int(kept.sum()) == rank


@pytest.mark.parametrize("method", ["dora", "dora method.score=sensitivity", "adalora"])
def test_a_finished_runs_checkpoint_holds_the_kept_components_alone(
    method: str, hub_root: Path, tmp_path: Path
) -> None:
    sizes = ["budget.target=2", "budget.init=6", "trainer.max_steps=3"]
    run(configure(tmp_path, hub_root, *f"method={method}".split(), *sizes))
    saved = newest_checkpoint(tmp_path)
    of_c = [
        value for key, value in saved["state_dict"].items() if ".lora_c" in key or ".lora_E" in key
    ]
    assert sum(value.numel() for value in of_c) == 12 * (6 if method == "adalora" else 2)
    weights = sum(value.numel() for key, value in saved["state_dict"].items() if ".mask" not in key)
    moments = [
        value
        for state in saved["optimizer_states"][0]["state"].values()
        for value in state.values()
    ]
    assert sum(value.numel() for value in moments if value.ndim) == 2 * weights


def test_what_trains_after_the_cut_is_what_a_new_optimizer_would_take(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run makes its optimizer from the cut model, and finds the saved state in it."""
    seen: list[bool] = []
    end = FineTuning.on_train_end

    def on_train_end(self: FineTuning) -> None:
        groups = self.trainer.optimizers[0].param_groups
        fresh = self.configure_optimizers()["optimizer"].param_groups
        seen.append(len(groups) == 3)
        for group, other in zip(groups, fresh, strict=True):
            pairs = zip(group["params"], other["params"], strict=True)
            seen.append(all(one is two for one, two in pairs))
        layers = adapter_layers(self).values()
        seen.append(len(groups[2]["params"]) == sum(layer.r > 0 for layer in layers) < 12)
        end(self)

    monkeypatch.setattr(FineTuning, "on_train_end", on_train_end)
    run(configure(tmp_path, hub_root, *SETTINGS, "method.c_lr_ratio=4"))
    assert seen == [True] * 5


def test_a_cut_checkpoint_is_read_into_a_whole_and_into_a_cut_model(
    hub_root: Path, tmp_path: Path
) -> None:
    sizes = ["budget.target=2", "budget.init=6", "trainer.max_steps=2"]
    run(configure(tmp_path, hub_root, *sizes))
    saved = newest_checkpoint(tmp_path)
    module = prepare(configure(tmp_path, hub_root, *sizes), tmp_path / "again").module
    content = RunContent(module)
    for _ in range(2):
        content.load_weights(checkpoint_path(tmp_path / "checkpoints", 2))
        state = module.state_dict()
        for name, value in saved["state_dict"].items():
            assert torch.equal(state[name], value)


def test_a_former_versions_checkpoint_of_the_frozen_phase_is_refused(tmp_path: Path) -> None:
    parts = {"TaskData": {}, "callbacks": {}, "history": [], "loops": {}, "lr_schedulers": []}
    parts |= {"optimizer_states": [], "rest": {}, "state_dict": {}, "metrics_csv": None}
    content = RunContent(type("NoAllocation", (), {"allocation": None})())
    with pytest.raises(UserError, match=r"step-9\.ckpt: an earlier version saved it after"):
        content.take_back({**parts, "optimizer_names": []}, tmp_path / "step-9.ckpt")
