"""LoRA on the ranks that another run found: read, checked, counted, and trained on."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import configure, tiny_roberta
from torch import nn
from transformers import AutoModelForSequenceClassification

from dynarank.adapters.inject import find_linears
from dynarank.allocation.config import BudgetConfig, DemConfig
from dynarank.errors import UserError
from dynarank.methods import build_method
from dynarank.methods.config import LoRAConfig
from dynarank.methods.dora_config import DynaRankConfig
from dynarank.methods.found_ranks import found_ranks, read_found_ranks
from dynarank.pretrained.architectures import ARCHITECTURES
from dynarank.runs.run import run

FAST = ("optimizer.lr=0.01", "budget.interval=1", "trainer.epochs=1")


@pytest.fixture(scope="module")
def allocated(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that distributed its ranks."""
    folder = tmp_path_factory.mktemp("allocated")
    run(configure(folder, hub_root, *FAST, "budget.init=6", "budget.target=1"))
    return folder


@pytest.mark.parametrize("part", ["", "adapter"])
def test_lora_trains_on_the_ranks_of_a_run_or_of_its_adapter(
    part: str, allocated: Path, hub_root: Path, tmp_path: Path
) -> None:
    ranks = json.loads((allocated / "ranks.json").read_text())
    assert len(set(ranks.values())) > 1
    place = f"method.rank_pattern_from={allocated / part}"
    results = run(configure(tmp_path, hub_root, *FAST, "method=lora", "budget.target=1", place))
    assert results.ranks == ranks
    assert list(results.ranks) == list(ranks)
    found = json.loads((allocated / "metrics.json").read_text())
    assert results.adapter_parameters == found["adapter_parameters"]
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    for name, rank in ranks.items():
        key = f"base_model.model.{name}.lora_A.weight"
        assert (len(tensors[key]) if key in tensors else 0) == rank


def test_a_run_whose_budget_was_rounded_up_from_a_half_is_taken(tmp_path: Path) -> None:
    ranks = {f"m{i}": int(i < 3) for i in range(10)}  # 2.5 components, halves up
    (tmp_path / "ranks.json").write_text(json.dumps(ranks))
    assert found_ranks(str(tmp_path), dict.fromkeys(ranks, 8), target=0.25) == ranks


def test_a_run_that_spent_parameters_rounded_up_from_a_half_is_taken(tmp_path: Path) -> None:
    costs = {"a": 7, "b": 7, "c": 15}  # half of 29 is 14.5, halves up
    (tmp_path / "ranks.json").write_text(json.dumps({"a": 0, "b": 0, "c": 1}))
    assert found_ranks(str(tmp_path), costs, target=0.5) == {"a": 0, "b": 0, "c": 1}


def test_ranks_of_a_run_and_a_placement_do_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"method\.placement = random: .* Give one of the two"):
        LoRAConfig(name="lora", placement="random", rank_pattern_from="run")


def test_ranks_of_another_budget_are_not_shuffled(tmp_path: Path) -> None:
    net = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(4, 3), "c": nn.Linear(3, 3)})
    (tmp_path / "ranks.json").write_text(json.dumps({"a": 2, "b": 2, "c": 2}))
    config = DynaRankConfig(name="dynarank", score="shuffled", rank_pattern_from=str(tmp_path))
    method: Any = build_method(config, BudgetConfig(target=1, init=2), DemConfig())
    method.adapt(net, ["a", "b", "c"], [])
    with pytest.raises(ValueError, match=r"has 6 components .* Set budget.target=2"):
        method.allocator(10)


def test_what_does_not_fit_is_named(allocated: Path, tmp_path: Path) -> None:
    ranks = read_found_ranks(str(allocated))
    costs = dict.fromkeys(ranks, 32)
    assert found_ranks(str(allocated), costs, target=1) == ranks
    with pytest.raises(ValueError, match=r"budget.target = 0.5 stands for 6. Set budget.target=1"):
        found_ranks(str(allocated), costs, target=0.5)
    with pytest.raises(ValueError, match=r"budget.target = 8 stands for 96. Set budget.target=1"):
        found_ranks(str(allocated), costs, target=8)  # a budget that the pattern does not fill
    other = {key.replace("query", "q_proj"): cost for key, cost in costs.items()}
    with pytest.raises(ValueError, match=r"query is no target of this model .* same model"):
        found_ranks(str(allocated), other, target=1)
    with pytest.raises(UserError, match=r"holds neither ranks.json nor adapter_config.json"):
        read_found_ranks(str(tmp_path))


def test_shuffled_ranks_above_the_start_end_the_run_in_one_message(
    allocated: Path, hub_root: Path, tmp_path: Path
) -> None:
    ranks = dict.fromkeys(read_found_ranks(str(allocated)), 0)
    ranks[next(iter(ranks))] = 12
    (tmp_path / "ranks.json").write_text(json.dumps(ranks))
    shuffled = ("method=dynarank", "method.score=shuffled", f"method.rank_pattern_from={tmp_path}")
    with pytest.raises(UserError, match=r"method=dynarank: "):
        run(configure(tmp_path / "run", hub_root, *FAST, *shuffled, "budget.target=1"))


def test_a_mistake_ends_the_run_in_one_message(hub_root: Path, tmp_path: Path) -> None:
    place = f"method.rank_pattern_from={tmp_path / 'nowhere'}"
    with pytest.raises(UserError, match=r"method\.rank_pattern_from = "):
        run(configure(tmp_path / "run", hub_root, *FAST, "method=lora", place))


@pytest.mark.parametrize("unit", ["components", "parameters"])
def test_shuffled_ranks_are_those_that_were_found_in_other_places(
    unit: str, tmp_path: Path
) -> None:
    """The method is pruned to the end, by the budget's schedule."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny_roberta())
    targets = ARCHITECTURES["roberta"].targets
    names = find_linears(model, targets, ["classifier"])
    shapes = {name: tuple(model.get_submodule(name).weight.shape) for name in names}
    found = {name: place % 3 for place, name in enumerate(names)}
    (tmp_path / "ranks.json").write_text(json.dumps(found))
    parameters = sum(rank * sum(shapes[name]) for name, rank in found.items())
    one_of_each = sum(sum(shape) for shape in shapes.values())
    target = parameters / one_of_each if unit == "parameters" else sum(found.values()) / len(found)

    seen = set()
    for seed in range(4):
        method: Any = build_method(
            DynaRankConfig(
                name="dynarank",
                score="shuffled",
                rank_pattern_from=str(tmp_path),
                score_seed=seed,
                dropout=0.0,
            ),
            BudgetConfig(target=target, init=2, unit=unit, regrow=False, interval=2),
            DemConfig(),
        )
        method.adapt(copy.deepcopy(model), targets, ["classifier"])
        allocator = method.allocator(20)
        while not allocator.frozen:
            allocator.step()
        ranks = method.ranks()
        for shape in set(shapes.values()):
            before, after = (
                sorted(pattern[name] for name in names if shapes[name] == shape)
                for pattern in (found, ranks)
            )
            assert after == before
        seen.add(tuple(ranks.values()))
    assert len(seen) == 4
    assert tuple(found.values()) not in seen
