"""evaluate: the scores of a labelled file, equal to those that the run itself recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prediction_runs import trained
from tiny import glue_rows, question_rows, summary_rows

from dynarank.commands.evaluate import main

SHORT = "task.generate.max_length=6"


def write_lines(path: Path, columns: dict[str, list[object]]) -> Path:
    """Write columns as JSON lines."""
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("overrides", "columns"),
    [
        (["task=mrpc"], glue_rows("mrpc", 18, 7)),
        (["task=stsb"], glue_rows("stsb", 18, 7)),
        (["task=squad"], question_rows(18, 7)),
        (["task=squad_v2"], question_rows(18, 7, no_answer=True)),
        (["task=xsum", "model=bart_base", SHORT], summary_rows(12, 7)),
    ],
    ids=["classes", "numbers", "answers", "answers and none", "texts"],
)
def test_it_scores_as_the_run_did(
    overrides: list[str],
    columns: dict[str, list[object]],
    hub_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file holds the rows that the run was validated on."""
    folder = trained(tmp_path / "run", hub_root, *overrides)
    recorded = json.loads((folder / "metrics.json").read_text())
    rows = write_lines(tmp_path / "rows.jsonl", columns)
    capsys.readouterr()
    common = ["--input", str(rows), "--hub-root", str(hub_root), "--batch-size=5"]
    main([str(folder), *common, "--json", "--output", str(tmp_path / "scores.json")])
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((tmp_path / "scores.json").read_text())
    assert shown["metrics"] == {
        name: pytest.approx(value, abs=1e-3) for name, value in recorded["metrics"].items()
    }
    assert shown["baseline"] == recorded["baseline"]
    assert shown["collapsed"] == recorded["collapsed"]
    assert shown["rows"] == len(columns[next(iter(columns))])


@pytest.fixture(scope="module")
def cola(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("cola"), hub_root, "task=cola")


def test_scores_are_shown_as_lines(
    cola: Path, hub_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", glue_rows("cola", 12, 3))
    main([str(cola / "adapter"), "--input", str(rows), "--hub-root", str(hub_root)])
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == f"12 rows of {rows}"
    assert second.startswith("matthews: ")
    assert second.endswith("(majority class: 0.0000)")


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        ('{"sentence": "a"}', "", "has no column 'label'"),
        ('{"sentence": "a", "label": 5}', "", "row 0: label = 5 is not a class"),
        ('{"sentence": "a", "label": 1}', "--output x.txt", "the ending must be one of .json"),
        ('{"sentence": "a", "label": 1}', "--output there.json", "there.json: is there already"),
    ],
)
def test_mistakes_are_named(
    lines: str,
    options: str,
    said: str,
    cola: Path,
    hub_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text(lines + "\n")
    Path("there.json").write_text("{}")
    with pytest.raises(SystemExit, match="2"):
        main([str(cola), "--input", "in.jsonl", "--hub-root", str(hub_root), *options.split()])
    assert said in capsys.readouterr().err
    assert Path("there.json").read_text() == "{}"


def test_the_rows_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run"])
    assert "give the labelled rows: --input FILE" in capsys.readouterr().err
