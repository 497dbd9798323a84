"""predict, as its user runs it: files in, files out, rows in their order."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import configure, glue_rows, sentences, write_dataset

from dynarank.commands.predict import main
from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.runs.predictor import load_predictor
from dynarank.runs.run import run


def trained(folder: Path, hub: Path, *overrides: str) -> Path:
    run(
        configure(
            folder, hub, "trainer.epochs=1", "budget.interval=1", "optimizer.lr=0.01", *overrides
        )
    )
    return folder


@pytest.fixture(scope="module")
def cola(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("cola"), hub_root, "task=cola")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    texts = [*sentences(11, 3), "cat " * 30, "dog"]
    path.write_text("idx,sentence\n" + "".join(f"k{i},{text}\n" for i, text in enumerate(texts)))
    return path


def predictions(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def test_probabilities_equal_pefts_one_row_at_a_time(
    cola: Path, rows: Path, hub_root: Path, tmp_path: Path
) -> None:
    import peft
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    main(
        [
            str(cola),
            "--input",
            str(rows),
            "--output",
            str(tmp_path / "o.csv"),
            "--hub-root",
            str(hub_root),
            "--batch-size=4",
        ]
    )
    found = predictions(tmp_path / "o.csv")
    with rows.open(newline="") as file:
        given = list(csv.DictReader(file))
    assert [record["idx"] for record in found] == [row["idx"] for row in given]
    base = AutoModelForSequenceClassification.from_pretrained(
        hub_root / "models/FacebookAI/roberta-base", num_labels=2
    )
    model = peft.PeftModel.from_pretrained(base, str(cola / "adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(cola / "adapter")
    for row, record in zip(given, found, strict=True):
        with torch.no_grad():
            wanted = model(**tokenizer(row["sentence"], return_tensors="pt")).logits.softmax(-1)[0]
        names = ("unacceptable", "acceptable")
        assert [float(record[f"probability_{name}"]) for name in names] == pytest.approx(
            wanted.tolist(), abs=1e-5
        )
        assert record["label"] == names[int(wanted.argmax())]


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "parquet"])
def test_every_output_format_holds_the_same(
    ending: str, cola: Path, rows: Path, hub_root: Path, tmp_path: Path
) -> None:
    import pandas as pd

    for name in ("o.csv", f"o.{ending}"):
        main(
            [
                str(cola / "adapter"),
                "--input",
                str(rows),
                "--output",
                str(tmp_path / name),
                "--hub-root",
                str(hub_root),
            ]
        )
    readers = {"tsv": lambda path: pd.read_csv(path, sep="\t"), "parquet": pd.read_parquet,
               "jsonl": lambda path: pd.read_json(path, lines=True)}  # fmt: skip
    pd.testing.assert_frame_equal(
        readers[ending](tmp_path / f"o.{ending}"), pd.read_csv(tmp_path / "o.csv"), rtol=1e-6
    )


def test_a_base_that_is_not_where_it_is_looked_for_is_said(
    cola: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main(
        [
            str(cola),
            "--input",
            str(rows),
            "--output",
            str(tmp_path / "o.csv"),
            "--hub-root",
            str(tmp_path),
        ]
    )
    assert (
        f"FacebookAI/roberta-base: not in {tmp_path}; taken from where it was in training"
        in caplog.text
    )


def test_a_number_and_a_head_alone(hub_root: Path, tmp_path: Path) -> None:
    trained(tmp_path / "run", hub_root, "task=stsb", "method=head")
    (tmp_path / "in.jsonl").write_text('{"sentence1": "a cat", "sentence2": "the dog"}\n' * 3)
    output = tmp_path / "new" / "o.jsonl"
    main(
        [
            str(tmp_path / "run"),
            "--input",
            str(tmp_path / "in.jsonl"),
            "--output",
            str(output),
            "--hub-root",
            str(hub_root),
        ]
    )
    found = predictions(output)
    assert [record["row"] for record in found] == [0, 1, 2]
    assert all(isinstance(record["score"], float) for record in found)


def test_answers_and_texts(hub_root: Path, tmp_path: Path) -> None:
    trained(tmp_path / "qa", hub_root, "task=squad")
    (tmp_path / "q.jsonl").write_text(
        json.dumps({"id": "x", "question": "is it good", "context": "the cat sat on"}) + "\n"
    )
    main([str(tmp_path / "qa"), "--input", str(tmp_path / "q.jsonl"), "--output", str(tmp_path / "a.jsonl"),
          "--hub-root", str(hub_root)])  # fmt: skip
    record = predictions(tmp_path / "a.jsonl")[0]
    assert record["id"] == "x"
    assert record["answer"] == record["nbest"][0]["text"]
    assert "the cat sat on"[record["start"] :].startswith(record["answer"])

    trained(
        tmp_path / "sum", hub_root, "task=xsum", "model=bart_base", "task.generate.max_length=6"
    )
    (tmp_path / "d.csv").write_text("text\nthe cat sat\na dog ran\n")
    main([str(tmp_path / "sum"), "--input", str(tmp_path / "d.csv"), "--output", str(tmp_path / "s.csv"),
          "--column", "source=text", "--hub-root", str(hub_root)])  # fmt: skip
    assert [record["row"] for record in predictions(tmp_path / "s.csv")] == ["0", "1"]


@pytest.mark.parametrize(
    ("task", "splits", "files", "values"),
    [("cola", ["test"], ["CoLA"], {"0", "1"}),
     ("rte", ["test"], ["RTE"], {"entailment", "not_entailment"}),
     ("mnli", ["test_matched", "test_mismatched"], ["MNLI-m", "MNLI-mm"], {"entailment", "neutral", "contradiction"}),
     ("stsb", ["test"], ["STS-B"], None)],
)  # fmt: skip
def test_glue_submission(
    task: str,
    splits: list[str],
    files: list[str],
    values: set[str] | None,
    hub_root: Path,
    tmp_path: Path,
) -> None:
    trained(tmp_path / "run", hub_root, f"task={task}")
    hidden = {
        split: glue_rows(task, 9, 5) | {"label": [-1 if values else 0.0] * 9} for split in splits
    }
    write_dataset(
        tmp_path / "hub/datasets/nyu-mll/glue", task, {"train": glue_rows(task, 4, 0), **hidden}
    )
    (tmp_path / "hub/models").symlink_to(hub_root / "models")
    main(
        [
            str(tmp_path / "run"),
            "--glue-submission",
            str(tmp_path / "out"),
            "--hub-root",
            str(tmp_path / "hub"),
        ]
    )
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


MISTAKES = [
    (["nowhere", "--input", "in.csv", "--output", "o.csv"], "nowhere: holds no dynarank.json"),
    (
        ["RUN", "--input", "missing.csv", "--output", "o.csv"],
        "--input missing.csv: there is no such file",
    ),
    (
        ["RUN", "--input", "in.csv", "--output", "o.xls"],
        "--output o.xls: the ending must be one of .csv",
    ),
    (
        ["RUN", "--input", "in.csv", "--output", "o.csv"],
        "--input in.csv has no column 'sentence'; it has words",
    ),
    (
        ["RUN", "--input", "in.csv", "--output", "o.csv", "--column", "txt=words"],
        "--column txt=words",
    ),
    (
        ["RUN", "--input", "in.csv", "--output", "o.csv", "--base", "./gone"],
        "--base = ./gone: no such folder",
    ),
    (
        ["RUN", "--input", "in.csv", "--output", "in.csv/o.csv"],
        "--output: in.csv cannot be made (File exists)",
    ),
    (["RUN", "--input", "in.csv", "--output", "o.csv", "--device", "gpu0"], "--device gpu0: "),
    (
        ["RUN", "--input", "long.csv", "--output", "o.csv"],
        "task.max_length: a text has 92 tokens, and the model 63 positions",
    ),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES)
def test_mistakes_are_named(
    arguments: list[str], said: str, cola: Path, hub_root: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("words\nthe cat\n")
    Path("long.csv").write_text("sentence\n" + "cat " * 90 + "\n")
    with pytest.raises(SystemExit) as stopped:
        main(
            [str(cola) if part == "RUN" else part for part in arguments]
            + ["--hub-root", str(hub_root)]
        )
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_classes_of_any_name_come_back(hub_root: Path, tmp_path: Path) -> None:
    """Names that a configuration language would read as missing values or references, and that csv must quote."""
    names = ["???", "${x}", 'a,"b"']
    given = "".join(
        json.dumps({"text": text, "label": names[i % 3]}) + "\n"
        for i, text in enumerate(sentences(30, 1))
    )
    (tmp_path / "rows.jsonl").write_text(given)
    own = ["task=text_classification", f"task.train_file={tmp_path / 'rows.jsonl'}"]
    folder, output = trained(tmp_path / "run", hub_root, *own), tmp_path / "o.csv"
    main(
        [
            str(folder),
            "--input",
            str(tmp_path / "rows.jsonl"),
            "--output",
            str(output),
            "--hub-root",
            str(hub_root),
        ]
    )
    found = predictions(output)
    assert set(found[0]) == {"row", "label", *(f"probability_{name}" for name in names)}
    assert {record["label"] for record in found} <= set(names)


def test_a_full_model_is_not_held_to_its_bases_hash(
    hub_root: Path, rows: Path, tmp_path: Path
) -> None:
    import hashlib

    digest = hashlib.sha256(
        (hub_root / "models/FacebookAI/roberta-base/model.safetensors").read_bytes()
    ).hexdigest()
    folder = trained(tmp_path / "run", hub_root, "method=full", f"model.sha256={digest}")
    main(
        [
            str(folder),
            "--input",
            str(rows),
            "--output",
            str(tmp_path / "o.csv"),
            "--hub-root",
            str(hub_root),
        ]
    )
    assert len(predictions(tmp_path / "o.csv")) == 13


@pytest.mark.parametrize("method", ["dora", "houlsby"])
def test_another_models_adapter_is_refused(
    method: str, hub_root: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(tmp_path / "run", hub_root, f"method={method}")
    with pytest.raises(SystemExit):
        main([str(folder), "--input", str(rows), "--output", str(tmp_path / "o.csv"), "--base", "facebook/bart-base",
              "--hub-root", str(hub_root)])  # fmt: skip
    said = capsys.readouterr().err
    assert said.startswith(f"error: {folder / 'adapter'} does not belong to ")
    assert "bart-base" in said


def test_a_folder_of_another_version_is_refused(
    cola: Path, rows: Path, hub_root: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(cola / "adapter", tmp_path / "adapter")
    record = json.loads((tmp_path / "adapter/dynarank.json").read_text())
    record["task"]["columns"]["newer"] = 1
    (tmp_path / "adapter/dynarank.json").write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=r"task/text_classification\.columns\.newer: recorded by another version"
    ):
        load_predictor(tmp_path, HubConfig(str(hub_root)))


def test_a_batch_holds_a_row_at_least(cola: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for size in ("0", "-3"):
        with pytest.raises(SystemExit):
            main([str(cola), "--input", "in.csv", "--output", "o.csv", "--batch-size", size])
        assert f"--batch-size {size}: at least 1" in capsys.readouterr().err
