"""Names that mean something to markdown, HTML or a spreadsheet are shown as they are."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from run_folders import write_run

from dynarank.report.baselines import baseline_line, collapsed_runs
from dynarank.report.csv_table import as_csv
from dynarank.report.markdown import escaped, report_text
from dynarank.report.page import Report, page
from dynarank.report.runs import LeftOut, read_runs
from dynarank.report.tables import build_table


def test_markdown_holds_no_markup_of_a_name(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>|[a](javascript:b)`c`*d*&amp;\n# e\x1b[31m"
    for method in ("lora", hostile):
        for seed in range(2):
            write_run(tmp_path / f"{method[:4]}{seed}", hostile, method, seed, 0.5 + seed / 10)
    runs, _ = read_runs([tmp_path])
    table = build_table(runs)
    left_out = [LeftOut(tmp_path / "x", f"failed: {hostile}")]
    text = report_text(table, table.settings[0], left_out)
    assert "<" not in text
    assert "\x1b" not in text
    assert "\n# e" not in text
    assert "[a](" not in text.replace("\\[", "").replace("\\]", "")
    columns = {line.replace("\\|", "").count("|") for line in text.splitlines()[6:10]}
    assert columns == {4}  # Two columns and the size: no name ends a cell.
    assert escaped("a_b 2 > 1") == "a_b 2 &gt; 1"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_cell_that_begins_like_a_formula_is_quoted(start: str, tmp_path: Path) -> None:
    name = f"{start}HYPERLINK(0)"
    write_run(tmp_path / "a", name, name, 0, -0.5)
    write_run(tmp_path / "b", name, "lora", 0, -0.6)
    rows = list(csv.reader(as_csv(build_table(read_runs([tmp_path])[0])).splitlines()))
    text = as_csv(build_table(read_runs([tmp_path])[0]))
    assert f"'{start}HYPERLINK" in text
    assert not any(cell.startswith(f"{start}HYPERLINK") for row in rows for cell in row)
    heads = rows[0]
    assert {float(row[heads.index("mean")]) for row in rows[1:] if len(row) == len(heads)} <= {
        -0.5,
        -0.6,
    }


def test_what_was_learned_stands_beside_what_a_guess_would_score(tmp_path: Path) -> None:
    more = {"baseline": {"name": "majority class", "metrics": {"accuracy": 0.69}}}
    for method, score in (("dora", 0.8), ("lora", 0.5)):
        collapsed = {"collapsed": True} if method == "lora" else {}
        write_run(tmp_path / method, "cola", method, 0, score, results={**more, **collapsed})
    runs, left_out = read_runs([tmp_path])
    table = build_table(runs)
    line = "A model that has learned nothing (majority class) scores 0.6900 accuracy."
    assert baseline_line(table, "cola") == line
    assert [run.method for run in collapsed_runs(table, "cola")] == ["lora"]
    assert line in report_text(table, table.settings[0], left_out)
    tables = (table, build_table(runs, last=True))
    text = page(Report("x", [tmp_path], tables, table.settings[0], runs, left_out, []))
    assert line in text
    assert "1 of 2 runs predicts the same for every row" in text
    assert "nothing learned" in text


@pytest.mark.parametrize("baseline", [3, [], "x", {}, {"accuracy": "x"}, {"accuracy": None}])
def test_a_baseline_that_says_nothing_is_ignored(baseline: object, tmp_path: Path) -> None:
    write_run(tmp_path / "a", "cola", "dora", 0, 0.5, results={"baseline": baseline})
    assert baseline_line(build_table(read_runs([tmp_path])[0]), "cola") == ""
