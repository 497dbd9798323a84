"""The tasks for the user's own texts, from a file to rows that are ready to be encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from tiny import compose

from dynarank.config.schema import to_config
from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.tasks import build_task
from dynarank.tasks.base import Task
from dynarank.tasks.files import READERS, write_file

Rows = list[dict[str, Any]]


def make(*overrides: str) -> Task:
    return build_task(to_config(compose(["output_dir=x", *overrides])).task)


def read(
    folder: Path,
    train: Rows,
    *overrides: str,
    name: str = "text_classification",
    ending: str = ".jsonl",
    **more: Rows,
) -> Task:
    """A task that has read `train`, and the same or `validation`, from files in the folder."""
    for stem, rows in {"train": train, "validation": more.get("validation", train)}.items():
        write_file(folder / f"{stem}{ending}", rows)
    files = [f"task.{stem}_file={folder / stem}{ending}" for stem in ("train", "validation")]
    task = make(f"task={name}", *files, *overrides)
    task.read(HubConfig())
    return task


def labelled(*labels: Any) -> Rows:
    return [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]


def numbers(task: Task, split: str | None = None) -> list[Any]:
    rows = task.train if split is None else task.validation[split]
    return list(rows[task.config.columns.label][:])


@pytest.mark.parametrize("ending", READERS)
def test_classes_are_found_in_the_data_of_every_kind_of_file(ending: str, tmp_path: Path) -> None:
    train, validation = labelled("spam", "ham", "eggs", "ham"), labelled("ham", "spam")
    task = read(tmp_path, train, ending=ending, validation=validation)
    assert task.class_names == ["eggs", "ham", "spam"]
    assert numbers(task) == [2, 1, 0, 1]
    assert numbers(task, "validation") == [1, 2]
    assert task.train["text"][:] == [row["text"] for row in train]
    assert task.model_options()["id2label"] == {0: "eggs", 1: "ham", 2: "spam"}
    assert task.model_options()["num_labels"] == 3


FOUND = [
    ((3, 1, 2, 1), ["1", "2", "3"], [2, 0, 1, 0]),
    ((10, 9, -1, 9), ["-1", "9", "10"], [2, 1, 0, 1]),
    ((2.0, 1.0, 10.0), ["1", "2", "10"], [1, 0, 2]),
    ((0.5, 10.5, 2.5), ["0.5", "2.5", "10.5"], [0, 2, 1]),
    ((True, False, True), ["False", "True"], [1, 0, 1]),
    (("²", "2"), ["2", "²"], [1, 0]),
    (("no", "1", "yes"), ["1", "no", "yes"], [1, 0, 2]),
]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize(("labels", "names", "found"), FOUND)
def test_typed_labels_become_classes_in_their_order(
    labels: tuple[Any, ...], names: list[str], found: list[int], ending: str, tmp_path: Path
) -> None:
    task = read(tmp_path, labelled(*labels), ending=ending)
    assert task.class_names == names
    assert numbers(task) == numbers(task, "validation") == found


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((10, 9, 1), ["1", "9", "10"]),
        ((10.0, 9.0, 1.5), ["1.5", "9.0", "10.0"]),
        ((2, 10, "x"), ["10", "2", "x"]),
    ],
)
def test_numbers_that_are_texts_are_sorted_as_numbers(
    labels: tuple[Any, ...], names: list[str], ending: str, tmp_path: Path
) -> None:
    task = read(tmp_path, labelled(*labels), ending=ending)
    assert task.class_names == names
    assert numbers(task) == [names.index(str(label)) for label in labels]


def test_a_class_is_the_same_in_files_of_two_kinds(tmp_path: Path) -> None:
    for labels in ((1, 2), (True, False)):
        write_file(tmp_path / "a.csv", labelled(*labels))
        write_file(tmp_path / "b.jsonl", labelled(*labels))
        files = [f"task.train_file={tmp_path}/a.csv", f"task.validation_file={tmp_path}/b.jsonl"]
        task = make("task=text_classification", *files)
        task.read(HubConfig())
        assert numbers(task) == numbers(task, "validation")


GIVEN = [
    ("[no,maybe,yes]", ("yes", "no", "maybe"), [2, 0, 1]),
    ("[no,maybe,yes]", (2, 0, 1), [2, 0, 1]),
    ("[no,maybe,yes]", ("2", "no", "1"), [2, 0, 1]),
    ("['3','1','2']", (1, 2, 3), [1, 2, 0]),
    ("['False','True']", (True, False, True), [1, 0, 1]),
]


@pytest.mark.parametrize(("names", "labels", "found"), GIVEN)
def test_given_classes_are_matched_by_name_and_by_number(
    names: str, labels: tuple[Any, ...], found: list[int], tmp_path: Path
) -> None:
    assert numbers(read(tmp_path, labelled(*labels), f"task.labels={names}")) == found


def test_where_names_are_numbers_a_class_has_no_other_number(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"train\.jsonl, row 2: label = 0 is not a class from 0 to 2 \(1, 2, 3\)"
    ):
        read(tmp_path, labelled(1, 2, 0), "task.labels=['1','2','3']")


@pytest.mark.parametrize(
    ("names", "given", "found"),
    [
        (["1", "2", "3"], "null", [0, 1, 2]),
        (["1", "2", "3"], "['1','2','3']", [0, 1, 2]),
        (["bad", "fair", "good"], "[good,fair,bad]", [2, 1, 0]),
        (["bad", "fair", "good"], "[low,middle,high]", [0, 1, 2]),
    ],
)
def test_a_hubs_class_numbers_are_never_taken_for_names(
    names: list[str], given: str, found: list[int], tmp_path: Path
) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    for split in ("train", "validation"):
        rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 2]}, features=features)
        rows.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    task = make("task=text_classification", f"task.path={tmp_path}", f"task.labels={given}")
    task.read(HubConfig())
    assert numbers(task) == numbers(task, "validation") == found


@pytest.mark.parametrize("ending", READERS)
def test_pairs_are_read_by_the_users_own_column_names(ending: str, tmp_path: Path) -> None:
    rows = [
        {"uid": "a", "one": "x", "two": "y", "verdict": "same"},
        {"uid": "b", "one": "z", "two": "w", "verdict": "other"},
    ]
    columns = "task.columns={text: one, text_pair: two, label: verdict, id: uid}"
    task = read(tmp_path, rows, columns, name="text_pair_classification", ending=ending)
    assert task.class_names == ["other", "same"]
    assert numbers(task) == [1, 0]
    assert (task.train["one"][:], task.train["two"][:], task.train["uid"][:]) == (
        ["x", "z"],
        ["y", "w"],
        ["a", "b"],
    )


@pytest.mark.parametrize("ending", READERS)
def test_numbers_are_read_from_every_kind_of_file(ending: str, tmp_path: Path) -> None:
    task = read(tmp_path, labelled(1, 2.5, -3e-2), name="text_regression", ending=ending)
    assert numbers(task) == [1.0, 2.5, -0.03]
    assert task.model_options() == {"num_labels": 1, "problem_type": "regression"}


@pytest.mark.parametrize("ending", READERS)
def test_sources_and_targets_are_read_from_every_kind_of_file(ending: str, tmp_path: Path) -> None:
    rows = [
        {"article": "a long one", "summary": "one"},
        {"article": "another, longer", "summary": "two"},
    ]
    columns = ["task.columns.source=article", "task.columns.target=summary"]
    task = read(tmp_path, rows, *columns, name="seq2seq", ending=ending)
    assert task.train.to_list() == task.validation["validation"].to_list() == rows


NESTED = [
    {"id": 1, "translation": {"en": "hello", "ro": "salut"}},
    {"id": 2, "translation": {"en": "bye", "ro": "pa"}},
]
DOTTED = ["task.columns.source=translation.en", "task.columns.target=translation.ro"]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_a_dot_reaches_into_a_nested_column(ending: str, tmp_path: Path) -> None:
    task = read(tmp_path, NESTED, *DOTTED, name="seq2seq", ending=ending)
    assert task.train["translation.en"][:] == ["hello", "bye"]
    assert task.validation["validation"]["translation.ro"][:] == ["salut", "pa"]


def test_nested_columns_that_no_dot_reaches_into_stay_whole(tmp_path: Path) -> None:
    """The answers of a question are nested too, beside its text or inside the same column."""
    answers = {"text": ["on"], "answer_start": [4]}
    row = {"id": "a", "question": "where", "doc": {"text": "sat on", "more": {"answers": answers}}}
    rows = [{**row, "answers": answers}, {**row, "id": "b", "answers": answers}]
    for column in ("answers", "doc.more.answers"):
        dotted = ["task.columns.context=doc.text", f"task.columns.answers={column}"]
        task = read(tmp_path, rows, *dotted, name="question_answering")
        assert task.train["doc.text"][:] == ["sat on", "sat on"]
        assert task.train["_texts"][:] == [["on"], ["on"]]


def test_a_nested_text_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl, row 2: translation\.ro is missing"):
        read(tmp_path, [*NESTED, {"id": 3, "translation": {"en": "only"}}], *DOTTED, name="seq2seq")
    with pytest.raises(
        UserError,
        match=r"'translation\.fr'; it has id, translation\.en, translation\.ro.*columns\.target",
    ):
        read(tmp_path, NESTED, DOTTED[0], "task.columns.target=translation.fr", name="seq2seq")


def refused(said: str, folder: Path, train: Rows, *overrides: str, **more: Any) -> None:
    with pytest.raises(UserError, match=said):
        read(folder, train, *overrides, **more)


@pytest.mark.parametrize("ending", READERS)
def test_a_class_unknown_in_training_is_named_with_file_row_and_label(
    ending: str, tmp_path: Path
) -> None:
    validation = labelled("ham", "spam", "eggs", "eggs")
    said = (
        r"^task\.validation_file = .*validation\..*, row 2: label = 'eggs' is not a class from "
        r"0 to 1 \(ham, spam\) \(2 such"
    )
    refused(said, tmp_path, labelled("ham", "spam"), ending=ending, validation=validation)


@pytest.mark.parametrize("text", ["", "  ", "\u00a0"])
@pytest.mark.parametrize("ending", READERS)
def test_an_empty_text_is_named_with_its_row(text: str, ending: str, tmp_path: Path) -> None:
    pairs = [
        {"text": "a", "text_pair": "b", "label": 0},
        {"text": "a", "text_pair": text, "label": 1},
    ]
    said = r"^task\.train_file = .*, row 1: text_pair is empty \(1 such rows\)"
    refused(said, tmp_path, pairs, name="text_pair_classification", ending=ending)
    refused(
        r", row 1: target is empty",
        tmp_path,
        [{"source": "a", "target": t} for t in ("b", text)],
        name="seq2seq",
    )


@pytest.mark.parametrize(
    ("ending", "how"),
    [(".csv", "empty"), (".tsv", "empty"), (".jsonl", "missing"), (".parquet", "missing")],
)
def test_a_missing_value_is_named_with_its_row(ending: str, how: str, tmp_path: Path) -> None:
    textless = [*labelled("a", "b"), {"text": None, "label": "a"}]
    refused(rf"^task\.train_file = .*, row 2: text is {how}", tmp_path, textless, ending=ending)
    refused(
        r"^task\.train_file = .*: label is missing in row 1",
        tmp_path,
        labelled("a", None, "b"),
        ending=ending,
    )
    said = r"^task\.validation_file = .*, row 1: label = (''|None) is not a class"
    refused(said, tmp_path, labelled("a", "b"), ending=ending, validation=labelled("a", None))
    said = r"^task\.train_file = .*, row 1: label = (''|None) is not a finite number"
    refused(said, tmp_path, labelled(1, None), name="text_regression", ending=ending)


def test_not_a_number_is_no_class(tmp_path: Path) -> None:
    train = labelled(1.0, float("nan"), 2.0)
    refused(r"label is missing in row 1", tmp_path, train, ending=".parquet")


@pytest.mark.parametrize(
    ("ending", "bad"),
    [(".csv", "five"), (".csv", "1,5"), (".csv", "inf"), (".parquet", float("nan"))],
)
def test_what_is_no_number_is_named_with_its_row(ending: str, bad: Any, tmp_path: Path) -> None:
    said = rf"^task\.train_file = .*, row 2: label = {bad!r} is not a finite number"
    refused(said, tmp_path, labelled(1, 2, bad), name="text_regression", ending=ending)


def test_one_class_only_is_nothing_to_learn(tmp_path: Path) -> None:
    refused(
        r"^task\.train_file = .*: label is 'a' in every row: there is nothing to learn",
        tmp_path,
        labelled("a", "a"),
    )


@pytest.mark.parametrize("ending", READERS)
def test_too_many_classes_suggest_regression(ending: str, tmp_path: Path) -> None:
    said = (
        r"label has 101 distinct values in 101 rows: not classes\..*task=text_regression "
        r".*task\.columns\.label"
    )
    refused(said, tmp_path, labelled(*(i / 8 for i in range(101))), ending=ending)
    assert len(read(tmp_path, labelled(*range(100)), ending=ending).class_names) == 100
    assert len(read(tmp_path, labelled(*range(101), *range(101)), ending=ending).class_names) == 101


@pytest.mark.parametrize("ending", READERS)
def test_an_id_that_occurs_twice_is_named_with_both_rows(ending: str, tmp_path: Path) -> None:
    rows = [
        {**row, "key": key} for row, key in zip(labelled(0, 1, 0, 1), (7, 8, 9, 8), strict=True)
    ]
    said = (
        r"^task\.train_file = .*, rows 1 and 3: key = '8' twice \(1 such ids\)"
        r".*task\.columns\.id=null"
    )
    refused(said, tmp_path, rows, "task.columns.id=key", ending=ending)
    assert len(read(tmp_path, rows, ending=ending).train) == 4


WRONG = [
    ("text_classification", "text", "body"),
    ("text_pair_classification", "text_pair", "other"),
    ("text_regression", "label", "score"),
    ("seq2seq", "source", "article"),
]


@pytest.mark.parametrize(("name", "role", "column"), WRONG)
def test_a_wrong_column_is_named_with_those_there_are(
    name: str, role: str, column: str, tmp_path: Path
) -> None:
    rows = [
        {"text": "a", "text_pair": "b", "label": i, "source": "c", "target": "d"} for i in range(2)
    ]
    there = "text, text_pair, label, source, target"
    said = (
        rf"^task\.train_file = .* has no column '{column}'; it has {there}\. "
        rf"Name yours in task\.columns\.{role}$"
    )
    refused(said, tmp_path, rows, f"task.columns.{role}={column}", name=name)


def test_numbers_are_no_texts(tmp_path: Path) -> None:
    refused(
        r"the column 'text' holds int64, not text",
        tmp_path,
        [{"text": i, "label": i} for i in range(2)],
    )


def test_a_row_of_an_only_file_has_its_number_there(tmp_path: Path) -> None:
    write_file(tmp_path / "all.csv", [*labelled(*("ab" * 20)), {"text": "", "label": "a"}])
    with pytest.raises(UserError, match=r"^task\.train_file = .*all\.csv, row 40: text is empty"):
        make("task=text_classification", f"task.train_file={tmp_path}/all.csv").read(HubConfig())


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize("bad", [["joy"], ["anger", "sadness"], []])
def test_a_list_of_classes_is_refused(bad: list[str], ending: str, tmp_path: Path) -> None:
    rows = labelled(["a"], bad, ["b"])
    refused(
        r", row 0: label = \['a'\] is a list: a row has one class", tmp_path, rows, ending=ending
    )


@pytest.mark.parametrize("ending", READERS)
def test_blanks_around_a_class_do_not_make_another(
    ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="dynarank"):
        task = read(tmp_path, labelled("pos ", "neg", "pos", " neg", "pos"), ending=ending)
    assert task.class_names == ["neg", "pos"]
    assert numbers(task) == [1, 0, 1, 0, 1]
    lines = [record.getMessage() for record in caplog.records if "classes" in record.getMessage()]
    assert lines == ["label: 2 classes: 'neg' (2 rows), 'pos' (3 rows)"]


def test_the_classes_found_are_recorded_and_the_configuration_stays(tmp_path: Path) -> None:
    task = read(tmp_path, labelled("b", "a"))
    assert task.config.labels is None
    assert task.recorded_config().labels == ["a", "b"]
    assert build_task(task.recorded_config()).class_names == ["a", "b"]


@pytest.mark.parametrize("ending", READERS)
def test_numbers_that_are_all_alike_are_refused_before_training(
    ending: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"name": "text_regression", "ending": ending}
    said = r"train_file = .*: label is 3 in every row: there is nothing to learn"
    refused(said, tmp_path, labelled(3, 3, 3), **options)
    said = r"validation_file = .*: label is 2\.5 in all 2 rows that validate, so that pearson"
    refused(said, tmp_path, labelled(1, 2, 3), **options, validation=labelled(2.5, 2.5))


def test_test_rows_with_numbers_that_are_all_alike_are_refused(tmp_path: Path) -> None:
    write_file(tmp_path / "test.jsonl", labelled(3, 3))
    said = r"^task\.test_file = .*: label is 3 in all 2 rows of the test, .* or null"
    test_file = f"task.test_file={tmp_path / 'test.jsonl'}"
    refused(said, tmp_path, labelled(1, 2, 3), test_file, name="text_regression")


def test_a_sample_of_numbers_that_are_all_alike_is_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"name": "text_regression", "validation": labelled(1, 2.5, 2.5, 3)}
    task = read(tmp_path, labelled(1, 2, 3), **options)
    task.check_sample("validation", np.asarray([0, 2]))
    with pytest.raises(UserError, match=r"label is 2\.5 in all rows of this sample of .* null"):
        task.check_sample("validation", np.asarray([1, 2]))


def test_a_column_that_is_not_used_may_hold_anything(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": "x", "other": 1}', '{"text": "b", "label": "y", "other": "z"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    file = f"task.train_file={tmp_path}/rows.jsonl"
    task = make("task=text_classification", file, "task.validation_share=0.5")
    task.read(HubConfig())
    assert task.class_names == ["x", "y"]


@pytest.mark.parametrize("setting", ["train_file", "validation_file"])
def test_the_home_folder_may_be_abbreviated(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_file(tmp_path / "rows.csv", labelled("a", "b", "a"))
    files = {"train_file": f"{tmp_path}/rows.csv", "validation_file": f"{tmp_path}/rows.csv"}
    files[setting] = "~/rows.csv"
    task = make(
        "task=text_classification", *(f"task.{name}='{file}'" for name, file in files.items())
    )
    task.read(HubConfig())
    assert len(task.train) == len(task.validation["validation"]) == 3
