"""What cannot be is refused before a model is loaded, and named as its user typed it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from prediction_runs import trained

from dynarank.commands.compress import main as compress


@pytest.fixture(scope="module")
def cola(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("cola"), hub_root, "task=cola")


REFUSED = [
    ("predict RUN --input folder --output o.csv", "--input = folder: the ending must be one of"),
    ("predict RUN --input words.csv --output o.csv", "Name yours by --column text=NAME\n"),
    ("predict RUN --input in.csv --output o.csv --keep wrds", "--keep wrds: --input in.csv has no"),
    ("predict RUN --input in.csv --output o.csv --column txt=a", "--column txt=a: must be"),
    ("predict RUN --input in.csv --output o.csv --max-answer 5", "--max-answer 5: task=cola has"),
    ("predict RUN --input in.csv --output o.csv --base ./gone", "--base = ./gone: no such folder"),
    ("predict RUN --glue-submission there", "CoLA.tsv: is there already"),
    ("predict RUN --input in.csv --output o.csv --glue-submission there", "is there already"),
    ("evaluate RUN --input folder", "--input = folder: the ending must be one of"),
    ("evaluate RUN --input in.csv", "--input in.csv has no column 'label'"),
    ("evaluate RUN --input odd.csv", "(1 such rows). Mend the rows; a split without"),
    ("compress RUN out --target r1 --calibrate folder", "--calibrate = folder: the ending must"),
    ("compress RUN out --target r1 --calibrate words.csv", "Name yours by renaming it in the file"),
    ("compress RUN out --target r0", "--target r0: must be above 0"),
    ("compress RUN out --target nan", "--target nan: must be above 0"),
    ("compress RUN out --parameters 0", "--parameters 0: must be 1 or more"),
    ("compress RUN out --energy 1.5", "--energy 1.5: must lie above 0"),
    (
        "compress RUN out --parameters 9 --per-layer",
        "--per-layer goes with --target or --energy, not with --parameters",
    ),
    ("chat RUN", "is a run of task=cola, and only one of task=instruct can be talked with"),
    ("export RUN out --base somewhere", "--base goes with --format merged"),
    ("report RUN --output in.csv/here", "--output in.csv/here cannot be written (Not a directory)"),
    ("report RUN --against method", "--against method: must be KEY=VALUE"),
]


@pytest.mark.parametrize(("line", "said"), REFUSED)
def test_it_is_one_message_before_anything_slow(
    line: str,
    said: str,
    cola: Path,
    hub_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "dynarank.pretrained.models.load_pretrained", lambda *_, **__: pytest.fail("loaded")
    )
    monkeypatch.setattr("dynarank.report.write_report.read_runs", lambda *_: pytest.fail("read"))
    Path("in.csv").write_text("sentence\nthe cat\n")
    Path("words.csv").write_text("words\nthe cat\n")
    Path("odd.csv").write_text("sentence,label\nthe cat,7\n")
    Path("folder").mkdir()
    Path("there").mkdir()
    Path("there/CoLA.tsv").write_text("")
    name, *words = line.replace("RUN", str(cola)).split()
    if name != "report":
        words += ["--hub-root", str(hub_root)]
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(f"dynarank.commands.{name}").main(words)
    assert said in capsys.readouterr().err
    assert not Path("out").exists()
    assert not Path("o.csv").exists()


def test_a_local_copy_of_the_hub_that_is_nowhere_is_named_as_the_option(
    cola: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("sentence\nthe cat\n")
    options = ["--target", "r1", "--calibrate", str(rows), "--base", "org/model", "--hub-root"]
    with pytest.raises(SystemExit, match="2"):
        compress([str(cola), str(tmp_path / "out"), *options, str(tmp_path / "gone")])
    assert f"--hub-root = {tmp_path / 'gone'}: no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        compress([str(cola), str(tmp_path / "out"), *options, str(tmp_path)])
    said = capsys.readouterr().err
    assert f"not found under --hub-root ({tmp_path})" in said
    assert "With a local copy: --hub-root DIR or DYNARANK_HUB=DIR" in said
    assert "hub.root" not in said
