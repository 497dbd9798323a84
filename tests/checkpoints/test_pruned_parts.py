"""Checkpoints after the freeze: smaller by what was pruned, and the same once read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import configure, newest_checkpoint
from torch import nn

from dynarank import inject, mark_trainable
from dynarank.checkpoints.pruned_parts import leave_out_pruned, put_back_pruned
from dynarank.runs.run import run
from dynarank.training.pruning import zero_pruned

KEPT = {"0": [True, False, True, False], "1": [False, False, False, False]}


def trained(steps_after: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Two adapted layers and a head after some AdamW steps, frozen, and trained on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(3, 2))
    layers = inject(model, ["0", "1"], r=4)
    mark_trainable(model, head=["2"])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.1, weight_decay=0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randn(7, 5)).square().sum().backward()
        optimizer.step()

    for _ in range(3):
        step()
    for name, layer in layers.items():
        layer.mask.copy_(torch.tensor(KEPT[name]))
    zero_pruned(model, [optimizer])
    for _ in range(steps_after):
        step()
    return model, optimizer


def as_checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "epoch": 3,
    }


def names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_what_is_silenced_stays_zero_and_has_no_gradient() -> None:
    model, optimizer = trained(steps_after=5)
    for layer, kept in ((model[0], KEPT["0"]), (model[1], KEPT["1"])):
        dead = ~torch.tensor(kept)
        for part in (layer.lora_A[dead], layer.lora_B[:, dead], layer.lora_c[dead]):
            assert not part.any()
        for factor, axis in ((layer.lora_A, 0), (layer.lora_B, 1), (layer.lora_c, 0)):
            index = dead.nonzero().flatten()
            moments = [
                value for value in optimizer.state[factor].values() if value.shape == factor.shape
            ]
            assert len(moments) == 2
            for tensor in (factor.grad, *moments):
                assert not tensor.index_select(axis, index).any()
    assert model[0].lora_A[torch.tensor(KEPT["0"])].all()


def test_a_round_trip_restores_every_bit_and_touches_nothing_live() -> None:
    model, optimizer = trained(steps_after=2)
    before = copy.deepcopy(as_checkpoint(model, optimizer))
    checkpoint = as_checkpoint(model, optimizer)
    checkpoint["average"] = dict(checkpoint["state_dict"])
    leave_out_pruned(checkpoint, names(model))
    assert (
        checkpoint["state_dict"]["0.lora_A"].shape
        == (2, 5)
        == checkpoint["average"]["0.lora_A"].shape
    )
    assert checkpoint["state_dict"]["1.lora_B"].shape == (3, 0)
    assert checkpoint["optimizer_states"][0]["state"][1]["exp_avg_sq"].shape == (6, 2)
    put_back_pruned(checkpoint)
    assert checkpoint.keys() - {"average"} == before.keys()
    for saved in (checkpoint["state_dict"], checkpoint["average"], model.state_dict()):
        assert all(torch.equal(saved[key], value) for key, value in before["state_dict"].items())
    was = before["optimizer_states"][0]
    for state in (checkpoint["optimizer_states"][0], optimizer.state_dict()):
        assert state["param_groups"] == was["param_groups"]
        assert state["state"].keys() == was["state"].keys()
        for index, moments in was["state"].items():
            assert all(
                torch.equal(state["state"][index][key], value) for key, value in moments.items()
            )


def test_a_checkpoint_that_is_not_compact_is_left_alone() -> None:
    model, optimizer = trained(steps_after=0)
    checkpoint = as_checkpoint(model, optimizer)
    put_back_pruned(checkpoint)
    assert checkpoint["state_dict"]["0.lora_A"].shape == (4, 5)


@pytest.mark.parametrize("method", ["dora", "dora method.score=sensitivity", "adalora"])
def test_a_finished_runs_checkpoint_holds_the_kept_components_alone(
    method: str, hub_root: Path, tmp_path: Path
) -> None:
    sizes = ["budget.target=2", "budget.init=6", "trainer.max_steps=2"]
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
