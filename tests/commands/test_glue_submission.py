"""The GLUE site's files: its names, its columns, its values."""

from __future__ import annotations

from pathlib import Path

import pytest
from prediction_runs import trained
from tiny import glue_rows, write_dataset

from dynarank.commands.predict import main


@pytest.mark.parametrize(
    ("task", "splits", "files", "values"),
    [
        ("cola", ["test"], ["CoLA"], {"0", "1"}),
        ("rte", ["test"], ["RTE"], {"entailment", "not_entailment"}),
        (
            "mnli",
            ["test_matched", "test_mismatched"],
            ["MNLI-m", "MNLI-mm"],
            {"entailment", "neutral", "contradiction"},
        ),
        ("stsb", ["test"], ["STS-B"], None),
    ],
)
def test_glue_submission(
    task: str,
    splits: list[str],
    files: list[str],
    values: set[str] | None,
    hub_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained(tmp_path / "run", hub_root, f"task={task}")
    hidden = {
        split: glue_rows(task, 9, 5) | {"label": [-1 if values else 0.0] * 9} for split in splits
    }
    write_dataset(
        tmp_path / "hub/datasets/nyu-mll/glue", task, {"train": glue_rows(task, 4, 0), **hidden}
    )
    (tmp_path / "hub/models").symlink_to(hub_root / "models")
    options = ["--glue-submission", str(tmp_path / "out"), "--hub-root", str(tmp_path / "hub")]
    main([str(tmp_path / "run"), *options])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{name}.tsv" for name in files
    ]
    for name in files:
        lines = [
            line.split("\t") for line in (tmp_path / "out" / f"{name}.tsv").read_text().splitlines()
        ]
        assert lines[0] == ["index", "prediction"]
        assert [line[0] for line in lines[1:]] == [str(index) for index in range(9)]
        for _, value in lines[1:]:
            assert value in values if values else 0 <= float(value) <= 5
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "run"), *options])
    assert f"{files[0]}.tsv: is there already" in capsys.readouterr().err
