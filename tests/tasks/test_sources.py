from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset
from tiny import compose, glue_rows, write_dataset, write_tokenizer
from transformers import AutoTokenizer

from dynarank.config.schema import to_config
from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig, Source
from dynarank.tasks import build_task, sources
from dynarank.tasks.config import TaskConfig, TextClassificationConfig
from dynarank.tasks.sources import (
    CONVERTED,
    check_source,
    cut_validation,
    describe,
    locate_data,
    open_splits,
)

SCRIPT = "Dataset scripts are no longer supported, but found somewhere.py"


def opened(mine: TaskConfig, hub: HubConfig, seed: int) -> Mapping[str, Dataset]:
    return cut_validation(mine, open_splits(mine, hub), seed)


def config(**changes: Any) -> TextClassificationConfig:
    return TextClassificationConfig(
        **{"name": "mine", "family": "text_classification", "select": "accuracy", **changes}
    )


def write_rows(path: Path, count: int) -> str:
    path.write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(count)))
    return str(path)


def texts(splits: Any, split: str) -> list[str]:
    return list(splits[split]["text"][:])


@pytest.mark.parametrize(
    "given",
    [
        {"path": "org/name"},
        {"train_file": "a.csv"},
        {"train_file": "a.csv", "validation_file": "b"},
    ],
)
def test_one_source_is_enough(given: dict[str, str]) -> None:
    check_source(config(**given))


UNCLEAR = [
    (
        {},
        r"^task\.path = null, task\.train_file = null: where is the data\? "
        r"Give task\.train_file=FILE .*task\.path=",
    ),
    (
        {"validation_file": "b.csv"},
        r"^task\.path = null, task\.train_file = null: .*task\.train_file=FILE",
    ),
    (
        {"path": "org/name", "train_file": "a.csv"},
        r"^task\.path = org/name, task\.train_file = a\.csv: two sources",
    ),
    (
        {"path": "org/name", "validation_file": "b.csv"},
        r"^task\.validation_file = b\.csv: needs task\.train_file beside it",
    ),
]


@pytest.mark.parametrize(("given", "said"), UNCLEAR)
def test_none_two_or_half_a_source_is_refused(given: dict[str, str], said: str) -> None:
    for check in (check_source, lambda mine: opened(mine, HubConfig(), 0)):
        with pytest.raises(UserError, match=said):
            check(config(**given))


def test_only_a_hubs_data_is_located(tmp_path: Path) -> None:
    (tmp_path / "datasets" / "org" / "name").mkdir(parents=True)
    hub = HubConfig(root=str(tmp_path))
    found = locate_data(config(path="org/name"), hub)
    assert found == Source(str((tmp_path / "datasets" / "org" / "name").resolve()), "org/name")
    assert locate_data(config(path="package:vaderSentiment/tweets"), hub) is None
    assert locate_data(config(train_file="nosuch.csv"), hub) is None


def test_a_given_validation_file_is_taken_whole_and_in_order(tmp_path: Path) -> None:
    mine = config(
        train_file=write_rows(tmp_path / "a.csv", 9),
        validation_file=write_rows(tmp_path / "b.csv", 4),
    )
    splits = opened(mine, HubConfig(), 3)
    assert texts(splits, "train") == [f"text {i}" for i in range(9)]
    assert texts(splits, "validation") == [f"text {i}" for i in range(4)]


def test_the_file_that_is_at_fault_is_the_one_that_is_named(tmp_path: Path) -> None:
    good = write_rows(tmp_path / "a.csv", 4)
    with pytest.raises(
        UserError, match=r"^task\.train_file = .*nosuch\.csv: there is no such file"
    ):
        opened(
            config(train_file=str(tmp_path / "nosuch.csv"), validation_file=good), HubConfig(), 0
        )
    with pytest.raises(
        UserError, match=r"^task\.validation_file = .*nosuch\.csv: there is no such file"
    ):
        opened(
            config(train_file=good, validation_file=str(tmp_path / "nosuch.csv")), HubConfig(), 0
        )


def test_one_file_is_cut_in_two_by_the_seed(tmp_path: Path) -> None:
    mine = config(train_file=write_rows(tmp_path / "a.csv", 50))
    first, again, other = (opened(mine, HubConfig(), seed) for seed in (0, 0, 1))
    for split in ("train", "validation"):
        assert texts(first, split) == texts(again, split)
        assert set(texts(first, split)) != set(texts(other, split))
    assert sorted(texts(first, "train") + texts(first, "validation")) == sorted(
        f"text {i}" for i in range(50)
    )


def test_texts_keep_their_labels_in_the_cut(tmp_path: Path) -> None:
    splits = opened(config(train_file=write_rows(tmp_path / "a.csv", 30)), HubConfig(), 0)
    for rows in splits.values():
        assert [int(text.split()[1]) % 2 for text in rows["text"][:]] == [
            int(label) for label in rows["label"][:]
        ]


@pytest.mark.parametrize(
    ("rows", "share", "cut"),
    [
        (50, 0.1, 5),
        (50, 0.5, 25),
        (47, 0.1, 5),
        (3, 0.1, 1),
        (2, 0.1, 1),
        (2, 0.9, 1),
        (10, 0.99, 9),
    ],
)
def test_the_share_is_rounded_and_leaves_a_row_on_either_side(
    rows: int, share: float, cut: int, tmp_path: Path
) -> None:
    splits = opened(
        config(train_file=write_rows(tmp_path / "a.csv", rows), validation_share=share),
        HubConfig(),
        0,
    )
    assert (len(splits["train"]), len(splits["validation"])) == (rows - cut, cut)


def test_one_row_cannot_be_cut(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", 1)
    with pytest.raises(
        UserError,
        match=r"^task\.train_file = .*one row cannot be split\. Give task\.validation_file",
    ):
        opened(config(train_file=path), HubConfig(), 0)
    splits = opened(config(train_file=path, validation_file=path), HubConfig(), 0)
    assert len(splits["train"]) == 1


def test_a_split_is_described_by_what_the_user_gave() -> None:
    assert describe(config(path="org/name"), "dev") == "task.path = org/name, split 'dev'"
    assert (
        describe(config(path="org/name", subset="x"), "dev")
        == "task.path = org/name (x), split 'dev'"
    )
    one, two = config(train_file="a.csv"), config(train_file="a.csv", validation_file="b.csv")
    assert [describe(one, split) for split in ("train", "validation")] == [
        "task.train_file = a.csv"
    ] * 2
    assert [describe(two, split) for split in ("train", "validation")] == [
        "task.train_file = a.csv",
        "task.validation_file = b.csv",
    ]


def folder_with(folder: Path, *subsets: str) -> str:
    for subset in subsets:
        rows = {"text": [f"of {subset}", "b"], "label": [0, 1]}
        write_dataset(folder, subset, {"train": rows, "validation": rows})
    return str(folder)


def test_of_several_subsets_the_one_of_the_tasks_name_is_taken(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "data", "another", "mine", "third")
    assert texts(opened(config(path=folder), HubConfig(), 0), "train")[0] == "of mine"
    assert (
        texts(opened(config(path=folder, subset="third"), HubConfig(), 0), "train")[0] == "of third"
    )


def test_an_only_subset_is_taken_whatever_its_name(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "data", "other")
    assert texts(opened(config(path=folder), HubConfig(), 0), "train")[0] == "of other"


@pytest.mark.parametrize(
    ("subsets", "said"),
    [(("mines", "other"), r"Did you mean 'mines'\?"), (("xx", "yy"), r"Known: xx, yy")],
)
def test_several_subsets_without_the_tasks_name_are_named(
    subsets: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path / "data", *subsets)
    with pytest.raises(UserError, match=rf"^task\.subset = null: {folder} has several\. {said}"):
        opened(config(path=folder), HubConfig(), 0)


def test_two_folders_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    for where in ("one", "two"):
        rows = {"text": [where, "b"], "label": [0, 1]}
        folder = write_dataset(tmp_path / where / "data", "mine", {"train": rows})
        assert texts(opened(config(path=str(folder)), HubConfig(), 0), "train")[0] == where


@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_a_damaged_cache_is_made_anew(
    kept: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Truncated as by a full disk or a kill: the copy of the data, and the encoded features."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {"train": glue_rows("cola", 40, 0), "validation": glue_rows("cola", 18, 7)}
    write_dataset(tmp_path / "datasets/nyu-mll/glue", "cola", rows)
    write_tokenizer(tmp_path / "tokenizer")

    def encoded() -> list[Any]:
        task = build_task(to_config(compose(["output_dir=x"])).task)
        task.read(HubConfig(str(tmp_path)))
        task.encode(AutoTokenizer.from_pretrained(tmp_path / "tokenizer"), None)  # type: ignore[arg-type]
        return [*task.train_features, *task.validation_features["validation"]]

    before, damaged = encoded(), 0
    for file in sorted((tmp_path / "cache").rglob("*.arrow")):
        content = file.read_bytes()
        file.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
        damaged += 1
    assert damaged == 4
    assert encoded() == before
    assert "was damaged, and is made anew" in caplog.text


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1 and then nothing of use")
    with pytest.raises(
        UserError,
        match=rf"^task\.path = {tmp_path}, task\.subset = None: cannot be read from {tmp_path}: ",
    ):
        opened(config(path=str(tmp_path)), HubConfig(), 0)


ROWS = Dataset.from_dict({"text": ["a"], "label": [0]})
Load = Callable[[str | None], Any]


@pytest.fixture
def asked(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Load], list[tuple[str, str | None, str | None]]]:
    """Puts a hub in datasets' place that answers by revision; lists what was asked of it."""

    def install(answer: Load) -> list[tuple[str, str | None, str | None]]:
        calls: list[tuple[str, str | None, str | None]] = []

        def load_dataset(
            path: str, subset: str | None, *, revision: str | None, **options: Any
        ) -> Any:
            calls.append((path, subset, revision))
            return answer(revision)

        def names(path: str, revision: str | None) -> list[str]:
            answer(revision)
            return ["mine", "other"]

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(datasets, "get_dataset_config_names", names)
        monkeypatch.setattr(
            sources, "locate", lambda kind, field, path, root, revision: Source(path, path)
        )
        return calls

    return install


def script_on_main(revision: str | None) -> Any:
    if revision != CONVERTED:
        raise RuntimeError(SCRIPT)
    return {"train": ROWS, "validation": ROWS}


def fails_otherwise(revision: str | None) -> Any:
    raise OSError("the disk is full\nand more")


def script_without_copy(revision: str | None) -> Any:
    raise RuntimeError(SCRIPT) if revision is None else ValueError(f"no {revision}")


def test_a_data_set_that_is_a_script_is_read_from_the_hubs_parquet_copy(asked: Any) -> None:
    calls = asked(script_on_main)
    splits = opened(config(path="org/name", subset="x"), HubConfig(), 0)
    assert splits["train"] is ROWS
    assert calls == [("org/name", "x", None), ("org/name", "x", "refs/convert/parquet")]


def test_the_subset_of_the_tasks_name_is_found_in_the_copy_too(asked: Any) -> None:
    calls = asked(script_on_main)
    opened(config(path="org/name"), HubConfig(), 0)
    assert calls == [("org/name", "mine", "refs/convert/parquet")]


@pytest.mark.parametrize(
    ("changes", "answer", "revisions", "said"),
    [
        ({"revision": "v1"}, script_on_main, ["v1"], f"RuntimeError: {SCRIPT}"),
        ({}, fails_otherwise, [None], "OSError: the disk is full"),
        ({}, script_without_copy, [None, CONVERTED], "ValueError: no refs/convert/parquet"),
    ],
)
def test_any_other_failure_is_told_and_not_covered_up(
    changes: dict[str, str], answer: Load, revisions: list[str | None], said: str, asked: Any
) -> None:
    calls = asked(answer)
    with pytest.raises(UserError) as raised:
        opened(config(path="org/name", subset="x", **changes), HubConfig(), 0)
    assert (
        str(raised.value)
        == f"task.path = org/name, task.subset = x: cannot be read from org/name: {said}"
    )
    assert [revision for _, _, revision in calls] == revisions


def test_a_local_script_is_not_looked_for_on_the_hub(asked: Any, tmp_path: Path) -> None:
    calls = asked(script_on_main)
    with pytest.raises(UserError, match="no longer supported"):
        opened(config(path=str(tmp_path), subset="x"), HubConfig(), 0)
    assert [revision for _, _, revision in calls] == [None]


def test_rows_with_nested_values_can_be_cut(tmp_path: Path) -> None:
    rows = [{"text": str(i), "label": {"deep": i}} for i in range(10)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = opened(config(train_file=str(tmp_path / "a.jsonl")), HubConfig(), 0)
    assert all(row["label"]["deep"] == int(row["text"]) for part in splits.values() for row in part)


def test_a_file_that_is_named_twice_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, other = write_rows(tmp_path / "a.csv", 4), write_rows(tmp_path / "b.csv", 4)
    open_splits(config(train_file=train, validation_file=other), HubConfig())
    assert not caplog.messages
    same = str(tmp_path / "." / "a.csv")
    open_splits(config(train_file=train, validation_file=other, test_file=same), HubConfig())
    assert caplog.messages == [
        f"task.test_file = {same}: is task.train_file, too, so that its scores say nothing of "
        "other rows"
    ]


def test_a_split_that_is_trained_on_is_not_tested_in_silence(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="'train': is trained on"):
        config(path="org/name", test_split="train")
    monkeypatch.setattr(sources, "locate_data", lambda mine, hub: Source("x", "x"))
    monkeypatch.setattr(sources, "_load", lambda *_: {})
    open_splits(config(path="org/name"), HubConfig())
    assert not caplog.messages
    both = {"validation_splits": ["validation", "train"], "select": "train/accuracy"}
    open_splits(config(path="org/name", **both), HubConfig())
    assert caplog.messages == [
        "task.validation_splits = ['validation', 'train']: 'train' is trained on, too, so that its "
        "scores say nothing of other rows"
    ]
