"""What is said of scores that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from run_folders import write_run
from scipy import stats

from dynarank.report.comparisons import Standing, standings
from dynarank.report.findings import headline, highest_alone, number, sentence
from dynarank.report.runs import read_runs
from dynarank.report.significance import chance_correlation, compare, sign_flips
from dynarank.report.sizes import Point, best_under, undominated
from dynarank.report.tables import Table, build_table


def table_of(
    folder: Path, scores: dict[tuple[str, str], list[float]]
) -> tuple[Table, list[Standing]]:
    """By task and method, a score a seed."""
    for (task, method), values in scores.items():
        for seed, score in enumerate(values):
            write_run(folder / f"{task}-{method}-{seed}", task, method, seed, score)
    table = build_table(read_runs([folder])[0])
    return table, standings(table)


def test_the_best_is_named_with_its_significance(tmp_path: Path) -> None:
    table, found = table_of(
        tmp_path, {("cola", "dora"): [0.60, 0.63, 0.59], ("cola", "lora"): [0.50, 0.529, 0.491]}
    )
    assert found[0].verdict == "significantly above all"
    assert found[0].p_holm == pytest.approx(
        stats.ttest_rel([0.60, 0.63, 0.59], [0.50, 0.529, 0.491]).pvalue
    )
    assert (
        headline(table, found)
        == "cola: method=dora is highest, 0.6067 accuracy, and significantly above the other."
    )
    assert "+0.1000 over method=lora, 95 % interval +0.0990 to +0.1010" in sentence(table, found[0])


def test_chance_is_not_called_a_result(tmp_path: Path) -> None:
    table, found = table_of(
        tmp_path, {("cola", "dora"): [0.6, 0.5, 0.55], ("cola", "lora"): [0.5, 0.58, 0.54]}
    )
    assert found[0].verdict == "no significant difference"
    assert headline(table, found).endswith("but not significantly above the other.")


def test_p_is_corrected_over_every_pair_of_every_task(tmp_path: Path) -> None:
    scores = {
        ("cola", "dora"): [0.60, 0.63, 0.59, 0.61],
        ("cola", "lora"): [0.50, 0.529, 0.491, 0.5],
        ("cola", "head"): [0.4, 0.45, 0.41, 0.42],
        ("rte", "dora"): [0.5, 0.6, 0.5, 0.6],
        ("rte", "lora"): [0.55, 0.52, 0.58, 0.5],
    }
    table, found = table_of(tmp_path, scores)
    assert [one.pairs for one in found] == [4, 4]
    raw = sorted(
        float(stats.ttest_rel(scores[a], scores[b]).pvalue)
        for a, b in [
            (("cola", "dora"), ("cola", "lora")),
            (("cola", "dora"), ("cola", "head")),
            (("cola", "lora"), ("cola", "head")),
            (("rte", "dora"), ("rte", "lora")),
        ]
    )
    lead = float(stats.ttest_rel(scores["cola", "dora"], scores["cola", "lora"]).pvalue)
    place = raw.index(lead)
    assert found[0].p_holm == pytest.approx(max((4 - i) * raw[i] for i in range(place + 1)))
    assert headline(table, found).startswith(
        "On 1 of 2 tasks the highest setting is significantly above every other. cola"
    )


@pytest.mark.parametrize(
    ("scores", "verdict", "said"),
    [
        (
            {("cola", "dora"): [0.5]},
            "one setting",
            "dora reaches 0.5000 accuracy, with 100 adapter parameters.",
        ),
        (
            {("cola", "dora"): [0.6], ("cola", "lora"): [0.5]},
            "one seed: not tested",
            "+0.1000 over method=lora; with one seed nothing is tested",
        ),
        (
            {("cola", "dora"): [0.6, 0.5], ("cola", "lora"): [0.5, 0.6]},
            "no significant difference",
            "score alike, 0.5500 accuracy",
        ),
    ],
)
def test_the_smaller_cases(
    scores: dict[tuple[str, str], list[float]], verdict: str, said: str, tmp_path: Path
) -> None:
    table, found = table_of(tmp_path, scores)
    assert found[0].verdict == verdict
    assert said in sentence(table, found[0])


def test_settings_without_a_common_seed_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "cola", "dora", 0, 0.6)
    write_run(tmp_path / "b", "cola", "lora", 1, 0.5)
    table = build_table(read_runs([tmp_path])[0])
    assert "no seed in common" in sentence(table, standings(table)[0])


def test_a_highest_mean_that_is_lower_on_the_common_seeds_is_above_none(tmp_path: Path) -> None:
    """Its mean is of more seeds, easier ones; the test is of those that both settings have."""
    for seed, score in enumerate([0.9, 0.9, 0.50, 0.51, 0.49]):
        write_run(tmp_path / f"dora-{seed}", "cola", "dora", seed, score)
    for seed, score in enumerate([0.60, 0.611, 0.589], start=2):
        write_run(tmp_path / f"lora-{seed}", "cola", "lora", seed, score)
    table = build_table(read_runs([tmp_path])[0])
    (standing,) = standings(table)
    assert standing.order[0] == ("dora",)
    assert standing.p_holm < 0.01
    assert standing.beaten == []
    assert "-0.1000 over method=lora" in sentence(table, standing)
    assert "but not significantly above the other" in sentence(table, standing)


def test_none_beats_an_undominated_point() -> None:
    points = [
        Point(*one)
        for one in [
            (1, 0.5, ("a",)),
            (1, 0.6, ("b",)),
            (2, 0.6, ("c",)),
            (3, 0.7, ("d",)),
            (4, 0.1, ("e",)),
        ]
    ]
    assert [point.setting for point in undominated(points)] == [("b",), ("d",)]
    assert [best_under(points, limit) for limit in (0, 2, 9)] == [None, points[1], points[3]]


def test_numbers_have_the_digits_of_their_scale() -> None:
    assert [number(value) for value in (0.84123, 84.123, float("nan"))] == ["0.8412", "84.12", "-"]


def test_unrelated_orders_exceed_the_chance_band_one_time_in_twenty() -> None:
    rng = np.random.default_rng(0)
    drawn = [stats.spearmanr(rng.permutation(36), rng.permutation(36))[0] for _ in range(4000)]
    assert np.mean(np.abs(drawn) > chance_correlation(36)) == pytest.approx(0.05, abs=0.015)
    assert chance_correlation(2) == 1


def test_a_score_that_is_no_number_is_no_evidence() -> None:
    assert np.isnan(sign_flips(np.asarray([0.1, np.nan])))
    many = compare(np.linspace(0, 1, 20), np.zeros(20))
    assert np.isnan(many.p_flips)  # 2^20 flips are not counted
    assert many.p_t < 0.001


def test_rows_that_are_alike_have_no_highest() -> None:
    assert highest_alone({("a",): 0.5, ("b",): 0.4}) == ("a",)
    assert highest_alone({("a",): 0.5, ("b",): 0.50001}) is None  # They are printed alike.
    assert highest_alone({("a",): 0.5, ("b",): float("nan")}) is None
    assert highest_alone({("a",): 0.5}) is None
