"""The bench's page: the answer first, no text of a csv as HTML, nothing fetched."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from dynarank.commands.bench import main
from dynarank.report.bench_page import bench_page, forest_picture, marked, sentences
from dynarank.report.bench_pairs import differences
from dynarank.sweeps.bench import Cell, append_cell

HOSTILE = "<script>window.hurt=1</script>"


def cells(gain: float) -> list[Cell]:
    found = []
    for (arm, own), task, seed in product(
        (("lora_even", 0.0), ("dynarank", gain)), ("sst2", "cola", HOSTILE), (1, 2, 3)
    ):
        noise = 0.001 * (seed + len(task) % 3 + len(arm) * seed % 4)
        score = 0.8 + own + noise
        found.append(Cell(arm, task, 0.25, seed, 1e-3, "accuracy", score, 1 - score, 9, 9, "1 0"))
    return found


@pytest.mark.parametrize(("gain", "words"), [(0.03, "is better than"), (-0.03, "is worse than")])
def test_the_pages_first_sentence_is_the_answer(gain: float, words: str) -> None:
    page = bench_page(cells(gain))
    heading = re.search(r"<h1>(.*?)</h1>", page)
    assert heading is not None
    assert f"<code>dynarank</code> {words} evenly placed LoRA" in heading[1]
    for number in range(1, 6):
        assert f"{number}. " in page
    assert page.count("<svg") == 1


def test_what_a_csv_says_is_text_and_nothing_is_fetched() -> None:
    page = bench_page(cells(0.03))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "default-src &#39;none&#39;" in page
    targets = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert {target for target in targets if not target.startswith("#")} == {"data:,"}
    assert marked("`a` < b") == "<code>a</code> &lt; b"


def test_the_picture_has_an_arm_a_row_and_takes_the_pages_colours() -> None:
    picture = forest_picture(cells(0.03))
    assert picture is not None
    (axes,) = picture.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dynarank"]
    (found,) = differences(cells(0.03))
    drawn = [np.asarray(line.get_xdata()).tolist() for line in axes.lines]
    assert [found.scores.low, found.scores.high] in drawn
    assert [found.task_low, found.task_high] in drawn
    ElementTree.fromstring(picture.svg)
    page = bench_page(cells(0.03))
    assert "currentColor" in page
    assert "var(--dot)" in page
    assert forest_picture(cells(0.03)[:9]) is None  # the baseline alone


def test_an_arm_with_too_few_pairs_is_not_drawn() -> None:
    few = [replace(cell, arm="eva") for cell in cells(0.05) if cell.arm == "dynarank"][:5]
    picture = forest_picture([*cells(0.03), *few])
    assert picture is not None
    (axes,) = picture.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dynarank"]


def test_an_arm_that_fails_does_not_flatten_the_others() -> None:
    found = cells(0.03)
    for arm, loss in (("random", 0.02), ("adalora", 0.01), ("paper", 0.7)):
        for cell in [one for one in cells(0.0) if one.arm == "dynarank"]:
            found.append(replace(cell, arm=arm, score=cell.score - loss))
    picture = forest_picture(found)
    assert picture is not None
    (axes,) = picture.figure.axes
    low, high = axes.get_xlim()
    assert -0.2 < low < -0.02
    assert high == -low
    (number,) = (float(text.get_text()) for text in axes.texts)
    assert number == pytest.approx(-0.7, abs=0.01)
    markers = [line.get_marker() for line in axes.lines if len(line.get_xdata()) == 1]
    assert markers.count("<") == 1
    assert markers.count("o") == 3


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    for cell in cells(0.0)[:4]:
        append_cell(tmp_path / "cells.csv", cell)
    main([str(tmp_path / "cells.csv"), "--report", str(tmp_path / "pages" / "bench.html")])
    text = (tmp_path / "pages" / "bench.html").read_text(encoding="utf-8")
    assert "<h1>Not yet answered" in text


def test_a_point_in_a_number_ends_no_sentence() -> None:
    assert sentences("At 0.25 none. At 8 all (p < 0.05). Open.") == [
        "At 0.25 none.",
        "At 8 all (p < 0.05).",
        "Open.",
    ]
