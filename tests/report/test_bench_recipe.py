"""The recipe's claim, on cells whose answers are known by construction."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import pytest
from scipy import stats

from dynarank.report.bench_recipe import (
    ALL,
    FIRST,
    LATER,
    below_one,
    by_seeds,
    claim,
    claim_grid,
    from_one,
    one_rate_section,
    recipe_section,
)
from dynarank.report.bench_tables import answer
from dynarank.sweeps.bench import Cell

TASKS, SEEDS = ("sst2", "cola", "mrpc"), (1, 2, 3)


def play(gains: dict[tuple[str, float], float]) -> list[Cell]:
    """Return cells of arms and budgets whose scores lie a gain above 0.8, give or take noise."""
    draw = random.Random(7)
    cells = []
    for (arm, budget), task, seed in product(gains, TASKS, SEEDS):
        score = 0.8 + gains[arm, budget] + draw.gauss(0, 0.004)
        cells.append(Cell(arm, task, budget, seed, 1e-3, "accuracy", score, 1 - score, 9))
    return cells


CELLS = play(
    {
        ("lora_even", 0.25): 0.0,
        ("lora_even", 0.5): 0.0,
        ("lora_even", 1): 0.0,
        ("lora_even", 8): 0.0,
        ("dynarank", 0.25): 0.03,
        ("dynarank", 0.5): 0.01,
        ("dynarank", 1): 0.0,
        ("dynarank", 8): -0.02,
        ("adalora", 0.25): 0.03,
        ("paper_from_two", 0.25): -0.1,
        ("random", 0.25): 0.2,
        ("lora_even", 0.1): 0.0,  # not planned with the claim
        ("dynarank", 0.1): 0.3,
    }
)


def test_budgets_below_one_are_one_comparison_each_corrected_over_the_rivals() -> None:
    scores = {(c.arm, c.task, c.budget, c.seed): c.score for c in CELLS}
    found = {one.against: one for one in below_one(CELLS)}
    p_values, rank_p_values = {}, {}
    for rival, budgets in (
        ("lora_even", (0.25, 0.5)),
        ("adalora", (0.25,)),
        ("paper_from_two", (0.25,)),
    ):
        keys = list(product(TASKS, budgets, SEEDS))
        ours = [scores["dynarank", *key] for key in keys]
        theirs = [scores[rival, *key] for key in keys]
        p_values[rival] = float(stats.ttest_rel(ours, theirs).pvalue)
        rank_p_values[rival] = float(stats.wilcoxon(ours, theirs).pvalue)
        one = found[rival]
        assert (one.budgets, one.scores.n) == (budgets, len(keys))
        assert one.scores.difference == pytest.approx((sum(ours) - sum(theirs)) / len(keys))
        assert one.won == sum(a > b for a, b in zip(ours, theirs, strict=True))
    for rival, corrected in by_hand(p_values).items():
        assert found[rival].adjusted == pytest.approx(corrected)
    for rival, corrected in by_hand(rank_p_values).items():
        assert found[rival].rank_p == pytest.approx(corrected)


def by_hand(p_values: dict[str, float]) -> dict[str, float]:
    """Return Holm's correction by its definition."""
    corrected, highest = {}, 0.0
    for place, rival in enumerate(sorted(p_values, key=lambda rival: p_values[rival])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[rival]))
        corrected[rival] = highest
    return corrected


def test_from_one_on_harm_is_looked_for_uncorrected() -> None:
    at_one, at_eight = from_one(CELLS)
    assert (at_one.budget, at_one.verdict, at_eight.budget, at_eight.verdict) == (1, 0, 8, -1)
    assert at_eight.adjusted == at_eight.scores.p_t


def test_the_claim_says_against_whom_and_stands_first() -> None:
    text = claim(CELLS)
    assert text.startswith(
        "Below one component a matrix, `dynarank` is better than evenly placed LoRA (+0.0"
    )
    assert "the paper's method" in text.partition("; not shown to differ from AdaLoRA")[0]
    assert "not shown to differ at 1" in text
    assert "worse at 8" in text
    assert answer(CELLS).startswith(text)
    assert recipe_section(CELLS).answer == text


def test_one_run_that_learned_nothing_decides_the_mean_and_not_the_ranks() -> None:
    lost = CELLS.index(next(c for c in CELLS if (c.arm, c.budget) == ("dynarank", 0.25)))
    cells = [*CELLS[:lost], replace(CELLS[lost], score=0.0), *CELLS[lost + 1 :]]
    pairs = {one.against: one for one in below_one(cells)}
    assert (pairs["lora_even"].verdict, pairs["lora_even"].rank_verdict) == (0, 1)
    by_mean, by_ranks = claim(cells).split(". ")[:2]
    assert "not shown to differ from" in by_mean.partition("evenly placed LoRA")[0]
    assert by_ranks.startswith(
        "By signed ranks over all seeds it is better than evenly placed LoRA"
    )


def test_seeds_that_were_added_later_answer_for_themselves() -> None:
    """The planned seeds have the recipe worse than AdaLoRA, the later ones better."""
    later = []
    for cell in CELLS:
        moved = cell.score - 0.1 if cell.arm == "adalora" else cell.score
        later.append(replace(cell, seed=cell.seed + 5, score=moved))
    tuning = [replace(cell, seed=100) for cell in CELLS if cell.seed == 1]
    cells = [*CELLS, *later, *tuning]
    found = {
        part: {one.against: one for one in of_part} for part, of_part in by_seeds(cells).items()
    }
    assert found[FIRST]["adalora"].verdict == 0
    assert found[LATER]["adalora"].verdict == 1
    assert [found[part]["adalora"].scores.n for part in (FIRST, LATER, ALL)] == [9, 9, 18]
    assert "On seeds that were added later it is better than AdaLoRA (+0." in claim(cells)
    assert "on the seeds that were planned, `dynarank` is" in claim(cells)
    assert "added later" not in claim([*CELLS, *tuning])
    grid = claim_grid(cells)
    assert grid.headings[1:] == (FIRST, LATER, "pairs won, all seeds")
    shown = {row[0]: row[1:] for row in grid.rows}
    assert [words.startswith("**") for words in shown["AdaLoRA"]] == [False, True, True]
    assert shown["AdaLoRA"][1] == f"**+{found[LATER]['adalora'].scores.difference:.3f}**"
    assert claim_grid(CELLS).headings[1] == ALL
    assert len(recipe_section(cells).grids) == len(recipe_section(CELLS).grids) + 2


def test_without_pairs_nothing_is_claimed() -> None:
    few = [cell for cell in CELLS if cell.task == "sst2" and cell.budget != 0.5]
    assert claim(few) == ""
    assert recipe_section(few).answer.startswith("The data carry no answer")
    assert recipe_section([]).grids == []


def test_one_rate_is_compared_with_tuned_rivals_and_with_nothing_else() -> None:
    at_one_rate = []
    for cell in CELLS:
        if cell.arm == "dynarank" and cell.budget in (0.25, 0.5):
            one_rate = replace(cell, arm="dynarank_at_5e-3", lr=5e-3, score=cell.score - 0.005)
            at_one_rate.append(one_rate)
    both = [*CELLS, *at_one_rate]
    section = one_rate_section(both)
    assert "`dynarank_at_5e-3` is better than" in section.answer
    assert "1e-2" not in section.answer  # of which nothing ran
    (grid,) = section.grids
    tuned = [row for row in grid.rows if row[2] == "dynarank"]
    assert [(row[0], row[6]) for row in tuned] == [("0.25", "-0.0050"), ("0.5", "-0.0050")]
    # They are another arm's runs: beside it they would count twice.
    assert answer(both) == answer(CELLS)
    assert recipe_section(both) == recipe_section(CELLS)
    assert one_rate_section(CELLS).grids == []
