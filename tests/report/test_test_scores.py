"""Scores of test rows in a report, and what is drawn for a phone."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import write_history, write_run

from dynarank.report.markdown import report_text
from dynarank.report.page import Report, page
from dynarank.report.page_rows import other_metrics, run_row
from dynarank.report.pictures import draw_pictures
from dynarank.report.runs import read_runs
from dynarank.report.tables import build_table


def test_test_scores_stand_beside_those_of_validation(tmp_path: Path) -> None:
    for seed, tested in enumerate((0.5, 0.75)):
        results = {"test_metrics": {"accuracy": tested}, "test_rows": 8}
        write_run(tmp_path / str(seed), "own", "dora", seed, 0.9, results=results)
    runs, left_out = read_runs([tmp_path])
    table = build_table(runs)
    (setting,) = table.settings
    assert other_metrics(table, setting, "own") == [("test accuracy", pytest.approx(0.625))]
    assert other_metrics(build_table(runs, last=True), setting, "own") == []
    assert run_row(table, runs[1], [tmp_path]).others == [("test accuracy", 0.75)]
    assert "On test rows, once: dora: accuracy 0.6250." in report_text(table, setting, left_out)


@pytest.mark.parametrize("tested", ["0.5", {"accuracy": "high"}, [0.5]])
def test_test_scores_that_are_none_leave_the_run_out(tested: object, tmp_path: Path) -> None:
    write_run(tmp_path / "good", "own", "dora", 0, 0.9)
    write_run(tmp_path / "bad", "own", "dora", 1, 0.9, results={"test_metrics": tested})
    runs, left_out = read_runs([tmp_path])
    assert [run.seed for run in runs] == [0]
    assert "test_metrics is" in str(left_out[0])


def test_what_is_too_wide_for_a_phone_is_drawn_for_it_apart(tmp_path: Path) -> None:
    for seed in (0, 1):
        for alpha in (4, 8):
            name = f"{alpha}-{seed}"
            write_run(tmp_path / name, "own", "dora", seed, 0.8 + seed / 10, alpha=alpha)
            write_history(tmp_path / name, prunings=3, seed=seed)
    runs, left_out = read_runs([tmp_path])
    table = build_table(runs)
    pictures = list(draw_pictures(table, runs))
    widths = {}
    for picture in pictures:
        figure = picture.phone or picture.figure
        widths[picture.kind] = figure.get_figwidth()
    assert {"rank_budgets", "rank_maps", "budget_quality"} <= set(widths)
    assert max(widths.values()) <= 4.8  # inches: letters of 8 points have 7 on 320 points
    tables = (table, build_table(runs, last=True))
    content = Report("x", [tmp_path], tables, table.settings[0], runs, left_out, pictures)
    assert page(content).count('class="on-phone"') == 3
