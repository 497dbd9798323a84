"""The bench's tables against arithmetic by hand, and the documentation against its file."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats
from tiny import REPOSITORY

from dynarank.errors import UserError
from dynarank.report.bench_overview import over_budgets, overviews
from dynarank.report.bench_pairs import differences
from dynarank.report.bench_tables import (
    BEGIN,
    BEGIN_SHORT,
    END,
    answer,
    overview_text,
    tables,
    update_page,
)
from dynarank.sweeps.bench import Cell, read_cells

FILE = REPOSITORY / "benchmarks" / "does_it_pay" / "cells.csv"


def cells(gains: dict[str, float], tasks: tuple[str, ...] = ("sst2", "cola")) -> list[Cell]:
    """Return cells whose scores differ from the baseline's by a gain, give or take 0.01."""
    result = []
    for arm, gain in {"lora_even": 0.0, **gains}.items():
        draw = random.Random(3)
        sign = 0 if arm == "lora_even" else 1
        for task in tasks:
            for seed in (100, 1, 2, 3, 4, 5):
                sign = -sign
                score = 0.8 + draw.gauss(0, 0.02) + gain + 0.01 * sign
                result.append(Cell(arm, task, 0.25, seed, 1e-3, "accuracy", score, 1 - score, 9))
    return result


def test_differences_are_paired_and_corrected_over_the_family() -> None:
    played = cells({"dynarank": 0.03, "random": 0.0})
    by_arm = {difference.arm: difference for difference in differences(played)}
    p_values = {}
    for arm in ("dynarank", "random"):
        pairs = []
        for task in ("sst2", "cola"):
            for seed in (1, 2, 3, 4, 5):
                both = {c.arm: c.score for c in played if (c.task, c.seed) == (task, seed)}
                pairs.append((both[arm], both["lora_even"]))
        ours, theirs = zip(*pairs, strict=True)
        p_values[arm] = float(stats.ttest_rel(ours, theirs).pvalue)
        mean = sum(ours) / 10 - sum(theirs) / 10
        assert by_arm[arm].scores.n == 10
        assert by_arm[arm].scores.difference == pytest.approx(mean)
        assert by_arm[arm].losses.difference == pytest.approx(-mean)
    assert p_values["dynarank"] < p_values["random"]
    assert by_arm["dynarank"].adjusted == pytest.approx(2 * p_values["dynarank"])
    assert by_arm["random"].adjusted == pytest.approx(p_values["random"])


def test_the_first_sentence_is_the_answer() -> None:
    assert "better: `dynarank` at 0.25; worse: none" in answer(cells({"dynarank": 0.03}))
    assert "better: none; worse: none" in answer(cells({"random": 0.0}))
    assert "better: none; worse: `random` at 0.25" in answer(cells({"random": -0.03}))
    assert answer(cells({"dynarank": 0.03}, tasks=("sst2",))).startswith("Not yet answered")
    assert answer([]).startswith("Not yet answered")


def test_a_page_takes_the_tables_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    update_page(page, cells({"dynarank": 0.0}))
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    page.write_text("no marks")
    with pytest.raises(UserError, match="has no lines"):
        update_page(page, [])


@pytest.mark.parametrize(
    ("page", "first", "content"),
    [("docs/science.md", BEGIN, tables), ("README.md", BEGIN_SHORT, overview_text)],
)
def test_the_documentation_shows_the_committed_cells(
    page: str, first: str, content: Callable[[list[Cell]], str]
) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    shown = text.partition(first)[2].partition(END)[0].strip()
    assert shown == content(read_cells(FILE)), (
        f"run `dynarank bench benchmarks/does_it_pay/cells.csv --report {page}`"
    )


def test_the_budgets_stand_beside_each_other_on_the_tasks_that_all_have() -> None:
    found = cells({"dynarank": 0.03, "random": 0.0}, tasks=("cola", "mrpc", "sst2"))
    wide = [replace(c, budget=1.0) for c in found if c.task != "mrpc" and c.arm != "random"]
    grid = over_budgets([*found, *wide])
    assert grid.headings[1:] == ("evenly placed LoRA, mean of 2 tasks", "dynarank less that")
    for row, budget in zip(grid.rows, (0.25, 1.0), strict=True):
        means = []
        for task in ("cola", "sst2"):
            of_task = [
                c.score for c in found if (c.arm, c.task) == ("lora_even", task) and c.seed < 100
            ]
            means.append(sum(of_task) / len(of_task))
        assert float(row[0]) == budget
        assert float(row[1]) == pytest.approx(sum(means) / 2, abs=6e-4)
    by_budget = {d.budget: d for d in differences([*found, *wide]) if d.arm == "dynarank"}
    assert float(grid.rows[0][2].split()[0]) == pytest.approx(
        by_budget[0.25].scores.difference, abs=6e-4
    )
    assert over_budgets([]).rows == []
    left_out = over_budgets([*found, *wide], without=("dynarank",))
    assert [row[:2] for row in left_out.rows] == [row[:2] for row in grid.rows]
    assert len(left_out.headings) == 2


def test_the_overview_has_the_means_by_task_and_leaves_open_what_did_not_run() -> None:
    found = cells({"dynarank": 0.03, "random": -0.02}, tasks=("cola", "mrpc", "sst2"))
    of_random = [cell for cell in found if cell.arm == "random"]
    found += [replace(cell, arm="paper") for cell in of_random if cell.task != "mrpc"]
    found += [replace(cell, arm="adalora") for cell in of_random if cell.task == "cola"]
    (grid,) = overviews(found)
    shown = {row[0]: row for row in grid.rows}
    assert list(shown)[:2] == ["dynarank", "lora_even"]  # the best difference first
    assert set(shown) == {"dynarank", "lora_even", "random", "paper"}  # adalora has five pairs
    assert (shown["paper"][2], shown["paper"][4]) == ("", "")  # no mrpc, and so no mean
    for arm in ("dynarank", "lora_even", "random"):
        means = []
        for task in ("cola", "mrpc", "sst2"):
            scores = [c.score for c in found if (c.arm, c.task) == (arm, task) and c.seed < 100]
            means.append(sum(scores) / len(scores))
        figures = [float(word) for word in shown[arm][1:5]]
        assert figures == pytest.approx([*means, sum(means) / 3], abs=6e-4)
    (difference,) = (d for d in differences(found) if d.arm == "dynarank")
    assert float(shown["dynarank"][-4]) == pytest.approx(difference.scores.difference, abs=6e-5)
