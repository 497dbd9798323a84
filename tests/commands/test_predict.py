"""predict, as its user runs it: files in, files out, rows in their order."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import sys
from pathlib import Path

import pytest
import torch
from prediction_runs import predict, records, trained
from tiny import sentences

from dynarank.commands import table_files
from dynarank.commands.evaluate import main as evaluate_main
from dynarank.commands.predict import main, parse


@pytest.fixture(scope="module")
def cola(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("cola"), hub_root, "task=cola")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    texts = [*sentences(11, 3), "cat " * 30, "dog"]
    path.write_text("idx,sentence\n" + "".join(f"k{i},{text}\n" for i, text in enumerate(texts)))
    return path


def test_probabilities_equal_pefts_one_row_at_a_time(
    cola: Path, rows: Path, hub_root: Path, tmp_path: Path
) -> None:
    import peft
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    predict(cola, rows, tmp_path / "o.csv", hub_root, "--batch-size=4")
    found = records(tmp_path / "o.csv")
    with rows.open(newline="") as file:
        given = list(csv.DictReader(file))
    assert [record["idx"] for record in found] == [row["idx"] for row in given]
    base = AutoModelForSequenceClassification.from_pretrained(
        hub_root / "models/FacebookAI/roberta-base", num_labels=2
    )
    model = peft.PeftModel.from_pretrained(base, str(cola / "adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(cola / "adapter")
    names = ("unacceptable", "acceptable")
    for row, record in zip(given, found, strict=True):
        with torch.no_grad():
            wanted = model(**tokenizer(row["sentence"], return_tensors="pt")).logits.softmax(-1)[0]
        probabilities = [float(record[f"probability_{name}"]) for name in names]
        assert probabilities == pytest.approx(wanted.tolist(), abs=1e-5)
        assert record["label"] == names[int(wanted.argmax())]


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "parquet"])
def test_every_output_format_holds_the_same(
    ending: str, cola: Path, rows: Path, hub_root: Path, tmp_path: Path
) -> None:
    import pandas as pd

    for name in ("o.csv", f"o.{ending}"):
        predict(cola / "adapter", rows, tmp_path / name, hub_root)
    readers = {
        "tsv": lambda path: pd.read_csv(path, sep="\t"),
        "parquet": pd.read_parquet,
        "jsonl": lambda path: pd.read_json(path, lines=True),
    }
    pd.testing.assert_frame_equal(
        readers[ending](tmp_path / f"o.{ending}"), pd.read_csv(tmp_path / "o.csv"), rtol=1e-6
    )


def test_a_number_and_a_head_alone(hub_root: Path, tmp_path: Path) -> None:
    trained(tmp_path / "run", hub_root, "task=stsb", "method=head")
    (tmp_path / "in.jsonl").write_text('{"sentence1": "a cat", "sentence2": "the dog"}\n' * 3)
    output = tmp_path / "new" / "o.jsonl"
    predict(tmp_path / "run", tmp_path / "in.jsonl", output, hub_root)
    found = records(output)
    assert [record["row"] for record in found] == [0, 1, 2]
    assert all(isinstance(record["score"], float) for record in found)


def test_answers_and_texts(hub_root: Path, tmp_path: Path) -> None:
    trained(tmp_path / "qa", hub_root, "task=squad")
    row = {"id": "x", "question": "is it good", "context": "the cat sat on"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    predict(tmp_path / "qa", tmp_path / "q.jsonl", tmp_path / "a.jsonl", hub_root)
    record = records(tmp_path / "a.jsonl")[0]
    assert record["id"] == "x"
    assert record["answer"] == record["nbest"][0]["text"]
    assert "the cat sat on"[record["start"] :].startswith(record["answer"])

    short = "task.generate.max_length=6"
    trained(tmp_path / "sum", hub_root, "task=xsum", "model=bart_base", short)
    (tmp_path / "d.csv").write_text("text\nthe cat sat\na dog ran\n")
    column = "--column=source=text"
    predict(tmp_path / "sum", tmp_path / "d.csv", tmp_path / "s.csv", hub_root, column)
    assert [record["row"] for record in records(tmp_path / "s.csv")] == ["0", "1"]


def test_classes_of_any_name_come_back(hub_root: Path, tmp_path: Path) -> None:
    """Some names mean something to a configuration language, and some must be quoted in csv."""
    names = ["???", "${x}", 'a,"b"']
    lines = []
    for index, text in enumerate(sentences(30, 1)):
        lines.append(json.dumps({"text": text, "label": names[index % 3]}) + "\n")
    rows, output = tmp_path / "rows.jsonl", tmp_path / "o.csv"
    rows.write_text("".join(lines))
    own = ["task=text_classification", f"task.train_file={rows}"]
    folder = trained(tmp_path / "run", hub_root, *own)
    predict(folder, rows, output, hub_root)
    found = records(output)
    assert set(found[0]) == {"row", "label", *(f"probability_{name}" for name in names)}
    assert {record["label"] for record in found} <= set(names)


def test_labelled_rows_are_scored_too(
    cola: Path, hub_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = sentences(8, 5)
    lines = [f"{text},{index % 2}" for index, text in enumerate(texts)]
    (tmp_path / "in.csv").write_text("sentence,label\n" + "\n".join(lines) + "\n")
    predict(cola, tmp_path / "in.csv", tmp_path / "o.csv", hub_root)
    shown = capsys.readouterr().out.splitlines()
    names = ("unacceptable", "acceptable")
    guesses = [names.index(record["label"]) for record in records(tmp_path / "o.csv")]
    labels = [index % 2 for index in range(8)]
    both = sum(guess == label == 1 for guess, label in zip(guesses, labels, strict=True))
    ones, size = sum(guesses), len(labels)
    spread = (ones * (size - ones) * 4 * 4) ** 0.5
    matthews = (both * size - ones * 4) / spread if spread else 0.0
    assert shown[1].startswith(f"matthews: {matthews:.4f} (majority class: 0.0000)")
    assert (len(set(guesses)) == 1) == shown[-1].startswith("the model predicts one thing")


def test_labels_that_cannot_be_scored_do_not_stop_predictions(
    cola: Path, hub_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in.csv").write_text("sentence,label\nthe cat,-1\na dog,-1\n")
    predict(cola, tmp_path / "in.csv", tmp_path / "o.csv", hub_root)
    assert len(records(tmp_path / "o.csv")) == 2
    assert "not scored: " in caplog.text
    assert "'-1' is not a class" in caplog.text


def test_columns_that_nobody_needs_may_hold_anything(
    cola: Path, hub_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "in.jsonl"
    kinds: list[object] = [1, "two", ["three"], {"four": 4}]
    rows = [{"sentence": "a cat", "note": kind, "label": kind} for kind in kinds]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict(cola, file, tmp_path / "o.csv", hub_root)
    assert len(records(tmp_path / "o.csv")) == 4
    assert "the column note is left out: row 1: note = 'two'" in caplog.text
    for more in (["--keep", "note"], ["--keep-all"]):
        with pytest.raises(SystemExit):
            predict(cola, file, tmp_path / "p.csv", hub_root, *more)
    assert not (tmp_path / "p.csv").exists()


def test_columns_are_carried_and_keep_their_names(
    cola: Path, hub_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.csv").write_text("sentence,label,row,other\nthe cat,a,7,x\na dog,b,8,y\n")
    keep = ["--keep", "label", "--keep", "sentence"]
    predict(cola, tmp_path / "in.csv", tmp_path / "some.csv", hub_root, *keep)
    found = records(tmp_path / "some.csv")
    assert list(found[0])[:4] == ["row", "label", "sentence", "predicted_label"]
    assert [record["label"] for record in found] == ["a", "b"]
    assert found[0]["predicted_label"] in ("acceptable", "unacceptable")
    assert "the predicted label stands in the column predicted_label" in capsys.readouterr().err
    predict(cola, tmp_path / "in.csv", tmp_path / "all.csv", hub_root, "--keep-all")
    found = records(tmp_path / "all.csv")
    assert [record["row"] for record in found] == ["7", "8"]
    assert [record["number_of_row"] for record in found] == ["0", "1"]
    assert [record["other"] for record in found] == ["x", "y"]


@pytest.mark.parametrize("name", ["label", "score", "predicted_label"])
def test_an_id_column_of_any_name_is_kept(
    name: str, cola: Path, hub_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text(f"{name},sentence\nk1,the cat\nk2,a dog\n")
    predict(cola, tmp_path / "in.csv", tmp_path / "o.csv", hub_root, f"--column=id={name}")
    found = records(tmp_path / "o.csv")
    assert [record[name] for record in found] == ["k1", "k2"]
    predicted = "predicted_label" if name == "label" else "label"
    assert {record[predicted] for record in found} <= {"acceptable", "unacceptable"}


def test_rows_come_by_standard_input(
    cola: Path,
    hub_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def give(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    give('{"sentence": "the cat"}\n{"sentence": "a dog"}\n')
    predict(cola, "-", tmp_path / "o.csv", hub_root, "--format=jsonl")
    assert len(records(tmp_path / "o.csv")) == 2
    give("not json\n")
    with pytest.raises(SystemExit, match="2"):
        predict(cola, "-", tmp_path / "p.csv", hub_root, "--format=jsonl")
    assert "--input = -: row 0 (line 1) is not JSON" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        predict(cola, "-", tmp_path / "p.csv", hub_root)
    assert "Say what it holds: --format csv|tsv|jsonl|parquet" in capsys.readouterr().err


def test_nothing_is_overwritten_unless_asked(
    cola: Path, hub_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, output = tmp_path / "in.csv", tmp_path / "o.csv"
    rows.write_text("sentence\nthe cat\n")
    output.write_text("precious\n")
    with pytest.raises(SystemExit, match="2"):
        predict(cola, rows, output, hub_root)
    assert f"--output {output}: is there already" in capsys.readouterr().err
    assert output.read_text() == "precious\n"
    predict(cola, rows, output, hub_root, "--overwrite")
    assert len(records(output)) == 1
    (tmp_path / "link.csv").symlink_to(rows)
    for name in ("in.csv", "link.csv"):
        with pytest.raises(SystemExit, match="2"):
            predict(cola, rows, tmp_path / name, hub_root, "--overwrite")
        assert "is the command's own input" in capsys.readouterr().err
    assert rows.read_text() == "sentence\nthe cat\n"


def test_output_is_whole_or_not_there_and_readable_by_others(
    cola: Path, hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.csv").write_text("sentence\nthe cat\n")
    output = tmp_path / "new" / "o.csv"
    umask = os.umask(0o022)
    try:
        predict(cola, tmp_path / "in.csv", output, hub_root)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(output.stat().st_mode) == 0o644
    before = output.read_text()

    def stop(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(OSError, match="No space"):
        table_files.write_rows(output, [{"row": 0}])
    assert output.read_text() == before
    assert [path.name for path in output.parent.iterdir()] == ["o.csv"]


MISTAKES = [
    ("nowhere --input in.csv --output o.csv", "nowhere: holds no dynarank.json"),
    ("RUN --input missing.csv --output o.csv", "--input missing.csv: there is no such file"),
    ("RUN --input in.csv --output o.xls", "--output o.xls: the ending must be one of .csv"),
    ("RUN --input in.csv --output o.csv", "--input in.csv has no column 'sentence'; it has words"),
    ("RUN --input in.csv --output o.csv", "Name yours by --column text=NAME\n"),
    ("RUN --input twice.csv --output o.csv", "(1 such ids). Make them unique\n"),
    ("RUN --input in.csv --output o.csv --column txt=words", "--column txt=words"),
    ("RUN --input in.csv --output o.csv --column __class__=words", "--column __class__=words"),
    ("RUN --input in.csv --output o.csv --base ./gone", "--base = ./gone: no such folder"),
    ("RUN --input in.csv --output in.csv/o.csv", "--output: in.csv cannot be made (File exists)"),
    ("RUN --input in.csv --output /proc/o.csv", "--output: /proc cannot be written ("),
    ("RUN --input in.csv --output o.csv --device gpu0", "--device gpu0: "),
    ("RUN --input in.csv --output o.csv --keep wrds", "no such column. Did you mean 'words'?"),
    ("RUN --input in.csv --output o.csv --format csv", "--format csv: is for --input - alone"),
    ("RUN --input in.csv --output folder.csv", "--output folder.csv: is a folder"),
    (
        "RUN --input long.csv --output o.csv",
        "a text has 92 tokens, and the model 63 positions. Give shorter texts\n",
    ),
    ("RUN --input in.csv --output o.csv --batch-size 0", "--batch-size 0: at least 1"),
    ("RUN --input in.csv --output o.csv --batch-size -3", "--batch-size -3: at least 1"),
    ("RUN --input in.csv", "give --input and --output together"),
    ("RUN", "give --input and --output, or --glue-submission"),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES)
def test_mistakes_are_named(
    line: str,
    said: str,
    cola: Path,
    hub_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("words\nthe cat\n")
    Path("long.csv").write_text("sentence\n" + "cat " * 90 + "\n")
    Path("twice.csv").write_text("sentence,idx\nthe cat,1\nthe dog,1\n")
    Path("folder.csv").mkdir()
    words = [str(cola) if word == "RUN" else word for word in line.split()]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--hub-root", str(hub_root)])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_secret_in_a_path_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary-canary")
    for words in (["--input", "canary-canary.csv", "--output", "o.csv"], ["--canary-canary"]):
        with pytest.raises(SystemExit, match="2"):
            main(["run", *words])
        assert "canary" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.json", "adapter/dynarank.json"])
def test_an_output_never_takes_the_place_of_a_runs_file(
    name: str, cola: Path, rows: Path, hub_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (cola / name).read_bytes()
    files = ["--input", str(rows), "--output", str(cola / name), "--overwrite"]
    command = main if name.endswith(".csv") else evaluate_main
    with pytest.raises(SystemExit) as end:
        command([str(cola), *files, "--hub-root", str(hub_root)])
    assert end.value.code == 2
    assert "is a file of a run's" in capsys.readouterr().err
    assert (cola / name).read_bytes() == before


def test_a_tilde_in_an_option_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    options = parse(["~/run", "--input=x.csv", "--output=~/out/x.csv"])
    assert (options.source, options.output) == (tmp_path / "run", tmp_path / "out" / "x.csv")


def test_the_home_of_an_unknown_user_is_a_missing_file(
    cola: Path, hub_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        predict(cola, "~nobody-of-this-name/rows.csv", tmp_path / "o.csv", hub_root)
    assert end.value.code == 2
    assert "there is no such file" in capsys.readouterr().err
