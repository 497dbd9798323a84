"""The bench's plan and file: every arm tuned alike, nothing run twice, no rate left at an edge."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from dynarank.sweeps.bench import (
    ARMS,
    SEEDS,
    TUNING_SEEDS,
    Cell,
    append_cell,
    read_cells,
    same_run,
)
from dynarank.sweeps.bench_tuning import best_rate, is_tuning, next_tuning, pending

ARM_NAMES = ("lora_even", "dynarank_alpha_8")
COUNT_COMPONENTS = ("paper", "paper_from_two", "eva", "replayed")
"""Arms whose own rules fix the unit; what `replayed` takes was found by parameters."""


def play(best: dict[str, float]) -> list[Cell]:
    """Play the plan to its end; the loss of an arm grows with the distance from its best rate."""
    cells: list[Cell] = []
    while cell := next(pending(cells, ["sst2"], [0.25], ARM_NAMES), None):
        loss = abs(math.log2(cell.lr / best[cell.arm]))
        cells.append(replace(cell, score=-loss, loss=loss))
        assert len(cells) < 100
    return cells


def test_tuning_goes_on_until_no_best_rate_stands_at_an_edge() -> None:
    grid = ARMS["lora_even"].grid()
    best = {"lora_even": grid[1], "dynarank_alpha_8": 4 * grid[-1]}
    cells = play(best)
    tuned = {arm: [c.lr for c in cells if c.arm == arm and c.seed == 100] for arm in best}
    assert tuned["lora_even"] == grid
    assert tuned["dynarank_alpha_8"] == [*grid, 2 * grid[-1], 4 * grid[-1], 8 * grid[-1]]
    later = {(c.seed, c.lr) for c in cells if c.arm == "lora_even" and c.seed == 101}
    assert later == {(101, grid[index]) for index in (0, 1)}
    for arm, rate in best.items():
        assert best_rate(cells, arm, "sst2", 0.25) == rate
        assert next_tuning(cells, arm, "sst2", 0.25) is None
        compared = [c for c in cells if c.arm == arm and not is_tuning(c)]
        assert [(c.seed, c.lr) for c in compared] == [(seed, rate) for seed in SEEDS]


def test_a_rate_at_which_another_tuning_seed_collapses_is_not_taken() -> None:
    """The loss falls with the rate, and jumps at the best one on the second seed alone."""
    grid = ARMS["lora_even"].grid()
    losses = {grid[0]: 0.5, grid[1]: 0.4, grid[2]: 0.3, 2 * grid[2]: 0.9}
    cells: list[Cell] = []
    while wanted := next_tuning(cells, "lora_even", "sst2", 0.25):
        assert best_rate(cells, "lora_even", "sst2", 0.25) is None
        seed, rate = wanted
        loss = 0.9 if (seed, rate) == (TUNING_SEEDS[1], grid[2]) else losses[rate]
        cells.append(Cell("lora_even", "sst2", 0.25, seed, rate, score=-loss, loss=loss))
    assert best_rate(cells, "lora_even", "sst2", 0.25) == grid[1]


def test_a_best_rate_at_the_lower_edge_extends_the_grid_downwards() -> None:
    lowest = ARMS["dynarank_alpha_8"].lowest_rate
    cells = play({"lora_even": lowest, "dynarank_alpha_8": lowest / 2})
    assert min(c.lr for c in cells if c.arm == "lora_even") == lowest / 2
    assert min(c.lr for c in cells if c.arm == "dynarank_alpha_8") == lowest / 4


def test_a_choice_of_both_seeds_at_the_lower_edge_extends_the_grid_downwards() -> None:
    """On the first seed the second rate is best; the second seed's losses fall with the rate."""
    grid = ARMS["lora_even"].grid()
    best = {TUNING_SEEDS[0]: grid[1], TUNING_SEEDS[1]: grid[0] / 4}
    cells: list[Cell] = []
    while wanted := next_tuning(cells, "lora_even", "sst2", 0.25):
        seed, rate = wanted
        slope = 1 if seed == TUNING_SEEDS[0] else 3
        loss = slope * abs(math.log2(rate / best[seed]))
        cells.append(Cell("lora_even", "sst2", 0.25, seed, rate, score=-loss, loss=loss))
        assert len(cells) < 20
    # The mean of both is lowest where the steeper one is, with a lower rate tried beside it.
    assert best_rate(cells, "lora_even", "sst2", 0.25) == grid[0] / 4
    for seed in TUNING_SEEDS:
        assert min(c.lr for c in cells if c.seed == seed) == grid[0] / 8


def test_a_grid_that_learns_nothing_is_carried_on_downwards() -> None:
    """At every rate of the grid the model predicts one thing; the losses differ by chance."""
    grid = ARMS["lora_even"].grid()
    by_chance = {grid[0]: 0.69, grid[1]: 0.68, grid[2]: 0.67}
    learned = {grid[0] / 2: 0.4, grid[0] / 4: 0.3, grid[0] / 8: 0.5}
    cells: list[Cell] = []
    while wanted := next_tuning(cells, "lora_even", "sst2", 0.25):
        seed, rate = wanted
        score = 0.5 if rate in by_chance else 1 - learned[rate]
        loss = (by_chance | learned)[rate]
        cells.append(Cell("lora_even", "sst2", 0.25, seed, rate, score=score, loss=loss))
    assert [c.lr for c in cells if c.seed == 100] == [*grid, *learned]
    assert best_rate(cells, "lora_even", "sst2", 0.25) == grid[0] / 4


def test_a_tuning_in_which_nothing_ever_learns_ends() -> None:
    cells: list[Cell] = []
    while wanted := next_tuning(cells, "lora_even", "sst2", 0.25):
        seed, rate = wanted
        cells.append(Cell("lora_even", "sst2", 0.25, seed, rate, score=0.5, loss=0.69))
        assert len(cells) < 20
    assert best_rate(cells, "lora_even", "sst2", 0.25) is not None  # the comparison shows it


def test_the_plan_ends_where_every_run_fails() -> None:
    cells: list[Cell] = []
    while cell := next(pending(cells, ["sst2"], [0.25], ARM_NAMES), None):
        cells.append(cell)  # its loss is NaN
    assert len(cells) == 6  # the two grids
    assert best_rate(cells, "dynarank_alpha_8", "sst2", 0.25) is None


def test_an_arm_of_one_rate_is_not_tuned() -> None:
    arm = "dynarank_at_1e-2"
    planned = list(pending([], ["sst2", "cola"], [0.25, 8.0], [arm]))
    assert {cell.lr for cell in planned} == {1e-2}
    assert not any(is_tuning(cell) for cell in planned)
    assert len(planned) == 2 * 2 * len(SEEDS)
    tuned_elsewhere = replace(planned[0], arm="dynarank", seed=TUNING_SEEDS[0], lr=5e-3, loss=0.1)
    assert best_rate([tuned_elsewhere], arm, "sst2", 0.25) == 1e-2


def test_a_run_that_another_arm_has_made_is_not_made_again() -> None:
    made = Cell("dynarank", "sst2", 0.25, 3, 1e-2, "accuracy", 0.8, 0.4, 10_368, 12, "1 0", 30.0)
    wanted = Cell("dynarank_at_1e-2", "sst2", 0.25, 3, 1e-2)
    assert made.overrides() == wanted.overrides()
    copy = same_run(wanted, [made])
    assert copy == replace(made, arm="dynarank_at_1e-2", seconds=0.0)  # it took no time
    for other in (
        replace(made, seed=4),
        replace(made, lr=5e-3),
        replace(made, task="cola"),
        replace(made, budget=0.5),
        replace(made, arm="random"),  # other settings
        replace(made, arm="of another version"),
        replace(made, score=math.nan),  # it failed
    ):
        assert same_run(wanted, [other]) is None
    # The ranks that an arm is given are no part of its settings.
    given = Cell("replayed", "sst2", 0.25, 3, 1e-2)
    assert same_run(given, [replace(made, arm="replayed")]) is None


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "bench" / "cells.csv"
    assert read_cells(path) == []
    cells = [
        Cell(
            "dynarank_alpha_8",
            "cola",
            0.25,
            1,
            0.004,
            "matthews",
            0.1 + 0.2,
            1 / 3,
            7,
            2,
            "0 2",
            1.5,
            "a",
        ),
        Cell("random", "cola", 8.0, 2, 1e-3 / 3),
    ]
    for cell in cells:
        append_cell(path, cell)
    read = read_cells(path)
    assert read[0] == cells[0]
    assert read[1].key == cells[1].key
    assert math.isnan(read[1].score)


@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_composes_and_takes_as_many_rates(name: str) -> None:
    import hydra

    from dynarank.config.folders import conf_folder
    from dynarank.config.schema import register_schemas, to_config

    budget = 1 if name == "eva" else 0.25  # EVA has no fractions
    cell = Cell(name, "mrpc", budget, 3, 0.002)
    ranks = "runs/found" if ARMS[name].ranks_of else ""
    register_schemas()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        overrides = ["output_dir=unused", *cell.overrides(ranks)]
        config = to_config(hydra.compose("train", overrides=overrides))
    assert (getattr(config.method, "rank_pattern_from", None) or "") == ranks
    assert (config.seed, config.lr, config.budget.target) == (3, 0.002, budget)
    assert config.optimizer.head_lr == 5e-3
    assert getattr(config.method, "dropout", 0) == 0
    assert config.budget.unit == (
        "components" if name.startswith("lora_") or name in COUNT_COMPONENTS else "parameters"
    )
    assert (config.model.name, config.task.name, config.epochs) == ("minilm", "mrpc", 1)
    assert config.task.max_train_rows == 2000
    assert len(ARMS[name].grid()) == 3


def test_a_cell_of_the_whole_scale_takes_all_rows() -> None:
    import hydra

    from dynarank.config.folders import conf_folder
    from dynarank.config.schema import register_schemas, to_config

    register_schemas()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        overrides = [
            "output_dir=unused",
            *Cell("dynarank_alpha_8", "cola:whole", 1, 3, 2e-3).overrides(),
        ]
        config = to_config(hydra.compose("train", overrides=overrides))
    assert (config.task.name, config.task.max_train_rows, config.epochs) == ("cola", None, 15)
    assert config.budget.interval == 100


@pytest.mark.parametrize(("budget", "init"), [(0.25, 2), (1, 2), (2, 3), (8, 12)])
def test_the_paper_from_two_starts_as_wide_as_its_budget_asks(budget: float, init: int) -> None:
    overrides = Cell("paper_from_two", "sst2", budget, 1, 2e-3).overrides()
    assert f"budget.init={init}" in overrides
