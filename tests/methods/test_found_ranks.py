"""LoRA on the ranks that another run found: read, checked, counted, and trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import configure

from dynarank.errors import UserError
from dynarank.methods.found_ranks import found_ranks, read_found_ranks
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


def test_what_does_not_fit_is_named(allocated: Path, tmp_path: Path) -> None:
    ranks = read_found_ranks(str(allocated))
    costs = dict.fromkeys(ranks, 32)
    assert found_ranks(str(allocated), costs, target=1) == ranks
    with pytest.raises(ValueError, match=r"budget.target = 0.5 stands for 6. Set budget.target=1"):
        found_ranks(str(allocated), costs, target=0.5)
    other = {key.replace("query", "q_proj"): cost for key, cost in costs.items()}
    with pytest.raises(ValueError, match=r"query is no target of this model .* same model"):
        found_ranks(str(allocated), other, target=1)
    with pytest.raises(UserError, match=r"holds neither ranks.json nor adapter_config.json"):
        read_found_ranks(str(tmp_path))


def test_a_mistake_ends_the_run_in_one_message(hub_root: Path, tmp_path: Path) -> None:
    place = f"method.rank_pattern_from={tmp_path / 'nowhere'}"
    with pytest.raises(UserError, match=r"method\.rank_pattern_from = "):
        run(configure(tmp_path / "run", hub_root, *FAST, "method=lora", place))
