"""What a user gave is known from what is typed, and from files of their own alone."""

from __future__ import annotations

from pathlib import Path

import hydra
from tiny import CONF

from dynarank.config.given import given_settings
from dynarank.config.guard import guarded
from dynarank.config.schema import register_schemas


def compose(*overrides: str) -> None:
    register_schemas()
    with guarded(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        hydra.compose("train", ["output_dir=x", *overrides], return_hydra_config=True)


def test_what_is_typed_is_given_and_a_group_is_what_it_is_about() -> None:
    given = given_settings(["+budget.warmup=0.3", "dem=paper", "budget=r8", "~budget.final"])
    assert given == {
        "budget.warmup": "+budget.warmup=0.3",
        "dem.eta": "dem=paper",
        "budget.target": "budget=r8",
    }


def test_files_of_a_users_own_count_and_the_projects_do_not(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [quickstart]\n"
        "budget: {warmup: 0.3, final: 0.2}\n"
        "hydra: {sweeper: {params: {seed: '1,2'}}}\n"
    )
    compose(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert given_settings(["budget.final=0.4"]) == {
        "budget.warmup": "budget.warmup=0.3 in experiment/mine.yaml",
        "budget.final": "budget.final=0.4",
        "seed": "seed=1,2 in experiment/mine.yaml",
    }
    compose("experiment=quickstart", "scale=small")  # another configuration
    assert given_settings([]) == {}
