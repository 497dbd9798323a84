"""The bench's five questions, on cells whose answers are known by construction."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy import stats

from dynarank.report import bench_ranks
from dynarank.report.bench_pairs import (
    cluster_interval,
    effect_interval,
    effect_size,
    paired_differences,
)
from dynarank.report.bench_questions import (
    history_section,
    orthogonal_section,
    paper_section,
    parts_section,
    scale_section,
    scores_section,
)
from dynarank.report.bench_ranks import (
    mean_correlation,
    places_below,
    ranks_section,
    repeats,
    resampled_correlations,
)
from dynarank.report.bench_spread import (
    chosen_on_other_seeds,
    spread_section,
    spreads,
    variance_between,
)
from dynarank.report.bench_tables import tables
from dynarank.sweeps.bench import Cell

TASKS = ("sst2", "cola", "mrpc")
SEEDS = (1, 2, 3, 4)


def play(
    gains: dict[str, float], noise: float = 0.004, ranks: Callable[[str], str] = lambda _: ""
) -> list[Cell]:
    """Return the cells of arms whose scores lie a gain above 0.8, give or take noise."""
    draw = random.Random(5)
    cells = []
    for arm, task, seed in product(gains, TASKS, SEEDS):
        score = 0.8 + gains[arm] + draw.gauss(0, noise)
        size = 10_368 if arm != "adalora" else 12_000
        cells.append(
            Cell(arm, task, 0.25, seed, 1e-3, "accuracy", score, 1 - score, size, 9, ranks(arm))
        )
    return cells


def test_a_bootstrap_over_tasks_is_that_of_all_its_draws() -> None:
    clusters = [[0.1, 0.2], [0.0], [0.4, 0.5, 0.6]]
    means = []
    for drawn in product(clusters, repeat=3):  # all 27 draws are alike
        values = [value for cluster in drawn for value in cluster]
        means.append(sum(values) / len(values))
    low, high = cluster_interval(clusters)
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975], method="inverted_cdf"))
    assert math.isnan(cluster_interval(clusters[:2])[0])


def test_the_interval_of_an_effect_size_is_that_of_scipys_bootstrap() -> None:
    draw = random.Random(3)
    values = [draw.gauss(0.02, 0.03) for _ in range(25)]

    def effect(drawn: np.ndarray, axis: int) -> np.ndarray:
        return drawn.mean(axis=axis) / drawn.std(axis=axis, ddof=1)

    wanted = stats.bootstrap(
        (values,), effect, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    low, high = effect_interval(values)
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=0.03)
    assert math.isnan(effect_interval(values[:5])[0])
    assert math.isnan(effect_interval([0.01] * 25)[0])


def test_differences_that_are_alike_but_for_rounding_have_no_effect_size() -> None:
    """Their spread is that of the last digit, and a mean over it is in the billions."""
    alike = [(tenths + 1) / 10 - tenths / 10 for tenths in range(2, 8)]
    assert len(set(alike)) > 1
    assert math.isnan(effect_size(alike))
    assert math.isnan(effect_interval(alike)[0])
    # A draw of the equal ones alone has none either, whatever the sum of its squares is rounded to.
    _, high = effect_interval([0.1] * 5 + [0.2])
    assert high < 10


def test_the_test_over_tasks_takes_one_value_of_each() -> None:
    cells = play({"dynarank": 0.01, "lora_even": 0.0})
    (found,) = paired_differences(cells, [("dynarank", "lora_even"), ("dynarank", "absent")])
    scores = {(c.arm, c.task, c.seed): c.score for c in cells}
    means = []
    for task in TASKS:
        gaps = [scores["dynarank", task, s] - scores["lora_even", task, s] for s in SEEDS]
        means.append(np.mean(gaps))
    assert found.task_p == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert found.task_low <= found.scores.difference <= found.task_high
    assert found.verdict == 1


def test_placements_spread_as_a_model_of_two_ways_says() -> None:
    draw = np.random.default_rng(0)
    own, shared = np.array([0.0, 0.05, -0.05, 0.02]), draw.normal(0, 0.1, size=400)
    scores = own[:, None] + shared + draw.normal(0, 0.01, size=(4, 400))
    between, p = variance_between(scores)
    assert between == pytest.approx(own.std(ddof=1), rel=0.03)
    assert p < 1e-6
    two = scores[:2, :9]  # with two rows F is the square of the paired t
    assert variance_between(two)[1] == pytest.approx(stats.ttest_rel(*two).pvalue)
    noise = draw.normal(size=(4, 400))
    assert variance_between(noise)[0] < 0.1
    assert variance_between(np.ones((2, 3))) == (0.0, 1.0)


def test_a_placement_is_judged_on_seeds_that_did_not_choose_it() -> None:
    scores = np.array([[0.0, 0.0, 0.0], [9.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    # Row 1 is best overall; without the first seed row 2 is, and with it row 1 is.
    assert chosen_on_other_seeds(scores, base=0) == pytest.approx((1 - 1 - 1) / 3)


def test_the_first_question_names_the_tasks_where_placement_matters() -> None:
    gains = {"lora_even": 0.0, "lora_feed_forward": 0.04, "lora_first_layers": -0.04}
    cells = play({**gains, "lora_random": 0.0})
    assert [(one.task, one.best) for one in spreads(cells)] == [
        (task, "lora_feed_forward") for task in TASKS
    ]
    text = spread_section(cells).answer
    assert "more than chance on 3 of 3 tasks (sst2, cola and mrpc)" in text
    assert (
        "more than chance on 0 of 3 tasks, p"
        in spread_section(play(dict.fromkeys(gains, 0))).answer
    )
    assert spread_section(play({"lora_even": 0})).answer.startswith("The data carry no answer")
    begun = Cell("lora_last_layers", "sst2", 0.25, 1, 1e-3, "accuracy", 0.9, 0.1, 10_368, 9)
    assert spreads([*cells, begun]) == spreads(cells)


def test_a_score_is_held_against_its_controls() -> None:
    gains = {"lora_even": 0.0, "random_alpha_8": -0.03, "dynarank": 0.03, "adalora": 0.0}
    section = scores_section(play(gains))
    assert "`dynarank` is better than `lora_even` and `random_alpha_8`" in section.answer
    assert "`adalora` is better than `random_alpha_8`" in section.answer
    assert "`adalora` is not shown to differ from `lora_even`" in section.answer
    assert section.answer.endswith("Not run: shuffled.")
    assert scores_section([]).answer.startswith("The data carry no answer")


def test_history_and_the_paper_are_answered_from_their_pairs() -> None:
    gains = {"lora_even": 0.0, "dynarank_alpha_8": 0.03, "replayed": 0.03, "global_svd": 0.03}
    cells = play({**gains, "compressed": 0.0, "paper": -0.03, "adalora": 0.0})
    history = history_section(cells).answer
    assert "`dynarank_alpha_8` is better than `compressed`;" in history
    assert "`global_svd` is better than `compressed`;" in history
    assert "`dynarank_alpha_8` is not shown to differ from `global_svd` and `replayed`" in history
    paper = paper_section(cells).answer
    assert "`paper` is worse than `adalora` and `lora_even`" in paper
    few = [cell for cell in cells if cell.task == "sst2"]
    assert paper_section(few).answer.startswith("The data carry no answer")
    assert paper_section(few).grids[0].rows  # shown, and not judged


def test_small_components_are_held_against_large_ones_and_against_one_another() -> None:
    gains = {"lora_even": 0.0, "lora_even_alpha_1": 0.03, "adalora": 0.0}
    answer = scale_section(play({**gains, "dynarank_alpha_1": 0.03})).answer
    assert "`lora_even_alpha_1` is better than `lora_even`" in answer
    assert "`adalora` is worse than `lora_even_alpha_1`" in answer
    assert "`dynarank_alpha_1` is better than `adalora`" in answer
    assert "`dynarank_alpha_1` is not shown to differ from `lora_even_alpha_1`" in answer


def test_orthogonal_components_are_judged_by_the_length_of_training() -> None:
    """They win in one and lose in the other, which together would look like nothing."""
    base = {"lora_even": 0.0, "even_orthogonal": 0.03, "random_orthogonal": 0.0}
    short = play({**base, "dynarank_orthogonal": -0.03})
    longer = []
    for cell in play({**base, "dynarank_orthogonal": 0.03}):
        longer.append(replace(cell, task=f"{cell.task}:longer"))
    section = orthogonal_section([*short, *longer])
    of_longer, of_short = section.answer.split("One short epoch: ")
    assert of_longer.startswith("Longer training: ")
    assert "`dynarank_orthogonal` is better than `lora_even` and `random_orthogonal`" in of_longer
    assert "`dynarank_orthogonal` is not shown to differ from `even_orthogonal`" in of_longer
    others = "`even_orthogonal`, `lora_even` and `random_orthogonal`"
    assert f"`dynarank_orthogonal` is worse than {others}" in of_short
    assert [grid.headings[0] for grid in section.grids] == [
        "budget, longer training",
        "budget, one short epoch",
    ]


def test_the_recipe_is_judged_in_all_and_by_the_length_of_training() -> None:
    base = {"lora_even_alpha_1": 0.0, "dynarank_orthogonal": 0.03, "random": 0.0}
    short = play({**base, "dynarank": 0.0})
    longer = []
    for cell in play({**base, "dynarank": 0.06}):
        longer.append(replace(cell, task=f"{cell.task}:longer"))
    section = parts_section([*short, *longer])
    of_all, by_length = section.answer.split("Longer training: ")
    of_longer, of_short = by_length.split("One short epoch: ")
    assert of_all.startswith("All tasks: ")
    better = "`dynarank` is better than"
    assert f"{better} `lora_even_alpha_1` and `random`" in of_all
    assert f"{better} `dynarank_orthogonal`, `lora_even_alpha_1` and `random`" in of_longer
    assert "`dynarank` is worse than `dynarank_orthogonal`" in of_short
    assert "not shown to differ from `lora_even_alpha_1` and `random`" in of_short
    assert [grid.headings[0] for grid in section.grids] == [
        "budget, all tasks",
        "budget, longer training",
        "budget, one short epoch",
    ]


def test_rank_correlations_are_spearmans() -> None:
    ranks = np.random.default_rng(1).integers(0, 4, size=(4, 36))
    pairs = [(0, 1), (0, 2), (1, 3)]
    expected = [stats.spearmanr(ranks[a], ranks[b]).statistic for a, b in pairs]
    first, second = np.array(pairs).T
    assert mean_correlation(ranks, first, second) == pytest.approx(np.mean(expected))
    ranks[2] = 1  # a run without an order leaves its pair out
    expected = [expected[0], expected[2]]
    assert mean_correlation(ranks, first, second) == pytest.approx(np.mean(expected))


def test_counted_draws_correlate_as_drawn_ones_do() -> None:
    rng = np.random.default_rng(3)
    ranks = rng.integers(4, size=(6, 9))
    ranks[5] = 2  # all ties
    first, second = np.array([0, 1, 2, 0]), np.array([3, 4, 3, 5])
    below = places_below(ranks)
    chosen = rng.integers(9, size=(50, 9))
    times = np.array([np.bincount(places, minlength=9) for places in chosen])
    expected = [mean_correlation(ranks[:, places], first, second) for places in chosen]
    found = resampled_correlations(below, times, first, second)
    assert found == pytest.approx(expected)
    assert np.isnan(resampled_correlations(below, times, first[3:], second[3:])).all()


def test_ranks_repeat_where_they_were_made_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_ranks, "DRAWS", 199)
    draw = random.Random(2)

    def drawn(arm: str) -> str:
        places = [i % 6 < 2 for i in range(36)] if arm == "dynarank" else [True] * 36
        return " ".join(str(draw.randint(0, 3) if place else 0) for place in places)

    cells = play({"dynarank": 0, "adalora": 0}, ranks=drawn)
    cells += play({"lora_even": 0}, ranks=lambda _: "1 0 0 0 " * 9)  # given, not found
    cells += play({"random": 0, "replayed": 0, "shuffled": 0}, ranks=drawn)  # by a seed, or an arm
    found = {(one.over, one.arms): one for one in repeats(cells)}
    assert set(found) == {
        ("seeds", ("dynarank",)),
        ("seeds", ("adalora",)),
        ("tasks", ("dynarank",)),
        ("tasks", ("adalora",)),
        ("methods", ("adalora", "dynarank")),
    }
    of_dynarank, of_adalora = found["seeds", ("dynarank",)], found["seeds", ("adalora",)]
    assert of_dynarank.pairs == 3 * 6
    assert of_dynarank.low > 0.3 > of_dynarank.chance
    assert of_dynarank.p == pytest.approx(1 / 200)
    assert abs(of_adalora.mean) < 0.15
    answer = ranks_section(cells).answer
    assert "Over seeds, ranks agree more than chance for 1 of 2: `dynarank` at 0.25" in answer
    assert ranks_section([]).answer.startswith("The data carry no answer")


def test_the_means_are_of_the_runs_that_are_compared() -> None:
    tuned = []
    for seed, rate in ((100, 1e-3), (100, 2e-3), (100, 4e-3), (101, 2e-3), (101, 1e-3)):
        loss = 0.1 if rate == 2e-3 else 0.3
        score = 1 - loss
        tuned.append(
            Cell("dynarank_alpha_8", "sst2", 0.25, seed, rate, "accuracy", score, loss, 10_368, 9)
        )
    played = [Cell("dynarank_alpha_8", "sst2", 0.25, 1, 2e-3, "accuracy", 0.8, 0.2, 10_368, 9)]
    # The rate that was the best before the tuning went on.
    played.append(Cell("dynarank_alpha_8", "sst2", 0.25, 1, 1e-3, "accuracy", 0.2, 0.9, 10_368, 9))
    assert "| dynarank_alpha_8 | 0.002 | 1 | 0.8000 | 0.2000 | 10,368 |" in tables(
        [*tuned, *played]
    )
    assert "| dynarank_alpha_8 | 0.002 | 0 |" in tables(tuned)


def test_every_method_shows_its_parameters() -> None:
    text = tables(play({"lora_even": 0.0, "adalora": 0.0}))
    assert "| adalora | none | 4 |" in text
    assert text.count("12,000 |") == 3
    assert text.count("10,368 |") == 3
