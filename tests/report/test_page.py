"""report.html as text: what it holds, and what a hostile name cannot do. In a browser:
test_page_in_browser.py."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import MATRICES, write_history, write_overrides, write_run

from dynarank.report.page import Report, page
from dynarank.report.page_data import DIGITS, MOST_PRUNINGS, history, layout, shared_settings
from dynarank.report.pictures import draw_pictures
from dynarank.report.runs import read_runs
from dynarank.report.tables import build_table

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}"


def page_of(folder: Path, drawn: bool = False) -> str:
    """Without pictures, which take their time, where they do not matter."""
    runs, left_out = read_runs([folder])
    table = build_table(runs)
    pictures = list(draw_pictures(table, runs)) if drawn else []
    tables = (table, replace(table, last=True))
    return page(
        Report("sweep", [folder], tables, table.settings[0], table.runs(), left_out, pictures)
    )


def data_of(text: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    return dict(json.loads(match[1]))


def decoded(run: dict[str, Any]) -> list[list[int]]:
    return [
        [DIGITS.index(digit) for digit in frame] if isinstance(frame, str) else frame
        for frame in run["ranks"]
    ]


def test_it_opens_with_the_result_and_holds_both_scores(tmp_path: Path) -> None:
    for seed, shift in enumerate((0.0, 0.02, -0.01)):
        write_run(tmp_path / f"d{seed}", "cola", "dora", seed, 0.6 + shift)
        write_run(tmp_path / f"l{seed}", "cola", "lora", seed, 0.5 + shift + seed / 1000)
    text = page_of(tmp_path)
    assert (
        "<h1>cola: method=dora is highest, 0.6033 accuracy, and significantly above the other.</h1>"
        in text
    )
    assert (
        text.index("<h1>")
        < text.index('id="table"')
        < text.index('id="differences"')
        < text.index('id="runs"')
    )
    table = text[text.index('id="scores"') : text.index('id="differences"')]
    assert "0.6033" in table
    assert "0.5033" in table  # the last epoch's
    assert (
        text.count('<tr data-score="at budget">') == text.count('<tr data-score="last epoch">') == 1
    )


def test_a_run_alone_has_a_page_without_comparisons(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", "cola", "dora", 3, 0.5)
    text = page_of(folder)
    assert "<h1>cola: dora reaches 0.5000 accuracy, with 100 adapter parameters.</h1>" in text
    assert 'id="differences"' not in text
    assert 'id="limit"' not in text


def test_no_text_of_a_run_becomes_markup(tmp_path: Path) -> None:
    for seed in range(2):
        folder = write_run(tmp_path / f"a{seed}", HOSTILE, HOSTILE + "m", seed, 0.5)
        write_history(folder, 3, seed)
        write_run(tmp_path / f"b{seed}", HOSTILE, "lora", seed, 0.4)
        write_overrides(folder, f"task={HOSTILE}")
    failed = tmp_path / "failed<b>"
    (failed / ".hydra").mkdir(parents=True)
    (failed / ".hydra" / "config.yaml").write_text("seed: 0\n")
    (failed / "error.txt").write_text(f"error: {HOSTILE}\n")
    text = page_of(tmp_path, drawn=True)
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text
    assert "failed<b>" not in text
    assert "{{ 7*7 }}" in text  # not a template either
    assert {run["task"] for run in data_of(text)["runs"]} == {HOSTILE}
    assert html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text


def test_it_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "one", "cola", "dora", 0, 0.5), drawn=True)
    loaded = re.findall(r'(?:src|href|action|data)="([^"]*)"', text) + re.findall(
        r"url\(([^)]*)\)", text
    )
    assert all(one.startswith(("#", "data:")) for one in loaded)
    assert "default-src 'none'" in html.unescape(text)
    assert "@import" not in text


def test_histories_are_embedded_as_they_are(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", "cola", "dora", 0, 0.5)
    written = write_history(folder, 9, 0)
    data = data_of(page_of(folder))
    run = data["runs"][0]
    names = data["layouts"][run["layout"]]["names"]
    assert names == MATRICES
    assert run["steps"] == [one["step"] for one in written]
    assert [dict(zip(names, frame, strict=True)) for frame in decoded(run)] == [
        one["ranks"] for one in written
    ]


@pytest.mark.parametrize("largest", [4, 35, 36, 200])
def test_long_histories_are_thinned_with_both_ends_kept_at_any_rank(
    largest: int, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "one", "cola", "dora", 0, 0.5)
    written = write_history(folder, 1234, 5, largest)
    found = history(read_runs([folder])[0][0])
    assert len(found["steps"]) == MOST_PRUNINGS
    assert (found["steps"][0], found["steps"][-1], found["prunings"]) == (4, 4 * 1234, 1234)
    by_step = {one["step"]: list(one["ranks"].values()) for one in written}
    assert decoded(found) == [by_step[step] for step in found["steps"]]


def test_a_matrix_has_its_place(tmp_path: Path) -> None:
    found = layout(
        [
            "model.encoder.layers.0.fc1",
            "model.decoder.layers.2.fc2",
            "model.decoder.layers.0.fc1",
            "head",
        ]
    )
    assert [(stack["name"], stack["matrices"], stack["layers"]) for stack in found["stacks"]] == [
        ("model.encoder.layers", ["fc1"], 1),
        ("model.decoder.layers", ["fc2", "fc1"], 3),
        ("", ["head"], 1),
    ]
    assert found["cells"] == [[0, 0, 0], [1, 0, 2], [1, 1, 0], [2, 0, 0]]


def test_configurations_are_split_into_what_is_shared_and_what_is_not(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / str(seed), "cola", "dora", seed, 0.5)
    runs = read_runs([tmp_path])[0]
    data = data_of(page_of(tmp_path))
    assert data["shared"] == shared_settings(runs)
    for run, entry in zip(runs, data["runs"], strict=True):
        assert {**data["shared"], **entry["own"]} == run.settings
    assert "seed" not in data["shared"]


def test_a_score_that_is_no_number_does_not_break_the_data(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", "cola", "dora", 0, 0.5)
    results = json.loads((folder / "metrics.json").read_text())
    results["metrics"]["accuracy"] = None
    results["last"]["accuracy"] = float("nan")
    (folder / "metrics.json").write_text(json.dumps(results))
    text = page_of(folder)
    assert "no run has a score" in text
    assert data_of(text)["runs"][0]["results"]["last.accuracy"] == "nan"


def test_many_runs_stay_small(tmp_path: Path) -> None:
    for index in range(24):
        for seed in range(2):
            folder = write_run(
                tmp_path / f"{index}-{seed}", "cola", f"m{index}", seed, 0.5 + index / 100
            )
            write_history(folder, 60, seed)
    assert len(page_of(tmp_path)) < 400_000
