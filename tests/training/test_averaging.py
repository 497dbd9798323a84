"""The averaged weights: computed again from the weights of every step, at budget, scored, left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from safetensors.torch import load_file
from tiny import configure, newest_checkpoint

from dynarank.adapters.cutting import Cuts
from dynarank.pretrained.hub import HubConfig
from dynarank.runs.predictor import load_predictor
from dynarank.runs.results import Results
from dynarank.runs.run import run
from dynarank.training import rank_allocation
from dynarank.training.averaging import trained_parameters
from dynarank.training.module import FineTuning

DECAY = 0.8
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def averaged(
    hub_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Results, list[Weights], list[Weights], Cuts]:
    """Return a run's results, the weights at the start, after every step and when validated, and
    what was cut at the freeze."""
    steps: list[Weights] = []
    validated: list[Weights] = []
    cuts: Cuts = {}
    cut_run = rank_allocation.cut_run

    class Recorded(FineTuning):
        def state(self) -> Weights:
            return {
                name: value.detach().clone() for name, value in trained_parameters(self).items()
            }

        def on_train_start(self) -> None:
            super().on_train_start()
            steps.append(self.state())

        def on_train_batch_end(self, *arguments: Any) -> None:
            super().on_train_batch_end(*arguments)
            steps.append(self.state())

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if batch_idx == 0:
                validated.append(self.state())
            super().validation_step(batch, batch_idx, dataloader_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynarank.runs.prepare.FineTuning", Recorded)
        patch.setattr(rank_allocation, "cut_run", lambda *given: cuts.update(cut_run(*given)))
        folder = tmp_path_factory.mktemp("averaged")
        settings = [
            "task=stsb",
            "budget.interval=1",
            "optimizer.lr=0.02",
            "trainer.epochs=5",
            f"trainer.ema={DECAY}",
        ]
        return run(configure(folder, hub_root, *settings)), steps, validated, cuts


def expected(steps: list[Weights], cuts: Cuts, last: int) -> Weights:
    """The average after `last` updates, in float64, by its definition."""
    found = {name: value.double() for name, value in steps[0].items()}
    for n, weights in enumerate(steps[1 : last + 1]):
        d = min(DECAY, (1 + n) / (10 + n))
        for name, weight in weights.items():
            before = found[name]
            if weight.shape != before.shape:
                before = before.index_select(cuts[name].axis, cuts[name].kept)
            found[name] = (d * before + (1 - d) * weight.double()) * (weight != 0)
        found = {name: found[name] for name in weights}
    return found


def close(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(
        torch.allclose(a[name].double(), b[name].double(), atol=1e-6) for name in a
    )


def test_it_is_the_average_of_every_steps_weights(averaged: Any) -> None:
    results, steps, _, cuts = averaged
    assert len(steps) == 16
    checkpoint = newest_checkpoint(Path(results.output_dir))
    assert cuts
    assert close(checkpoint["average"], expected(steps, cuts, 15))
    assert close({name: checkpoint["state_dict"][name] for name in steps[-1]}, steps[-1])
    assert not close(checkpoint["average"], steps[-1])


def test_every_validation_sees_it(averaged: Any) -> None:
    _, steps, validated, cuts = averaged
    for epoch in range(5):
        assert close(validated[epoch], expected(steps, cuts, 3 * (epoch + 1)))


def test_it_keeps_as_many_components_as_the_budget(averaged: Any) -> None:
    results, _, validated, _ = averaged
    assert sum(results.ranks.values()) == results.components_target == 24
    nonzero = [
        sum(int((w != 0).sum()) for name, w in one.items() if name.endswith("lora_c"))
        for one in validated
    ]
    history = json.loads((Path(results.output_dir) / "rank_history.json").read_text())
    pruned = {entry["step"]: sum(entry["ranks"].values()) for entry in history}
    assert nonzero[:5] == [pruned.get(step, 24) for step in (3, 6, 9, 12, 15)]
    assert 24 < nonzero[1] < 36
    adapter = load_file(Path(results.output_dir) / "adapter/adapter_model.safetensors")
    assert sum(len(value) for name, value in adapter.items() if "lora_A" in name) == 24


def test_what_is_scored_is_what_is_exported(averaged: Any, hub_root: Path) -> None:
    results, steps, _, cuts = averaged
    predictor = load_predictor(Path(results.output_dir), HubConfig(str(hub_root)))
    rows = load_dataset(str(hub_root / "datasets/nyu-mll/glue"), "stsb")["validation"]
    found = torch.tensor([record["score"] for record in predictor(rows)])
    pearson = torch.corrcoef(torch.stack([found, torch.tensor(rows["label"][:])]))[0, 1]
    assert float(pearson) == pytest.approx(
        results.metrics["pearson"], abs=1e-3
    )  # the scores lie within 0.001
    selected = expected(steps, cuts, results.selected["step"])
    adapter = load_file(Path(results.output_dir) / "adapter/adapter_model.safetensors")
    head = [name for name in selected if "classifier" in name]
    assert close(
        {name: adapter[f"base_model.{name}"] for name in head},
        {name: selected[name] for name in head},
    )
    for name, rank in results.ranks.items():
        if rank:
            A, B, c = (selected[f"model.{name}.lora_{factor}"] for factor in "ABc")
            assert int((c != 0).sum()) == rank
            exported = [
                adapter[f"base_model.model.{name}.lora_{factor}.weight"].double() for factor in "BA"
            ]
            assert torch.allclose(exported[0] @ exported[1], 8 / 3 * (B * c) @ A, atol=1e-6)


def test_batches_that_only_accumulate_do_not_count(hub_root: Path, tmp_path: Path) -> None:
    run(configure(tmp_path, hub_root, "trainer.accumulate=3", "trainer.ema=0.9", "method=head"))
    state = next(
        state
        for name, state in newest_checkpoint(tmp_path)["callbacks"].items()
        if "WeightAverage" in name
    )
    assert state == {"updates": 2}
