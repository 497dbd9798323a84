"""Fixtures: a hub.root of tiny models and data, and no way out to the network or into the user's
caches."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import (
    GLUE,
    glue_rows,
    question_rows,
    sentences,
    summary_rows,
    tiny_bart,
    tiny_roberta,
    tiny_t5,
    write_dataset,
    write_model,
)

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"


LONGEST = ("test_notebooks.py", "test_wheel.py", "test_resume.py", "test_distributed.py")
"""Files that take a minute or more. A file is one worker's, so that one of them at the end would
leave the other cores idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the others stay in their order."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """Let collections of garbage pass over what imports have made.

    It is more than a million objects, and each run would look through all of them once or twice.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def hub_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub.root with every GLUE task in a few rows, and a tiny model under roberta-base's name."""
    root = tmp_path_factory.mktemp("hub")
    write_model(root / "models" / "FacebookAI" / "roberta-base", tiny_roberta())
    for subset in GLUE:
        splits = (
            ["validation_matched", "validation_mismatched"] if subset == "mnli" else ["validation"]
        )
        tables = {"train": glue_rows(subset, 40, 0)} | {
            split: glue_rows(subset, 18, 7) for split in splits
        }
        write_dataset(root / "datasets" / "nyu-mll" / "glue", subset, tables)
    write_model(root / "models" / "facebook" / "bart-base", tiny_bart())
    write_model(root / "models" / "google-t5" / "t5-base", tiny_t5())
    write_dataset(
        root / "datasets/rajpurkar/squad",
        "plain_text",
        {"train": question_rows(40, 0), "validation": question_rows(18, 7)},
    )
    write_dataset(
        root / "datasets/rajpurkar/squad_v2",
        "squad_v2",
        {"train": question_rows(40, 0, True), "validation": question_rows(18, 7, True)},
    )
    write_dataset(
        root / "datasets/EdinburghNLP/xsum",
        "default",
        {"train": summary_rows(40, 0), "validation": summary_rows(12, 7)},
    )
    pairs = [{"en": a, "ro": b} for a, b in zip(sentences(40, 1), sentences(40, 2), strict=True)]
    write_dataset(
        root / "datasets/wmt/wmt16",
        "ro-en",
        {"train": {"translation": pairs}, "validation": {"translation": pairs[:12]}},
    )
    return root


@pytest.fixture(scope="module", autouse=True)
def quick_pictures() -> Iterator[None]:
    """Let the runs in this process draw their rank maps, and write them as empty files.

    To turn a picture into three files takes half of a tiny run. Runs in processes of their own do
    it, and so do the modules that put another fixture of this name in this one's place.
    """
    from dynarank.training import rank_map

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_map, "_render", lambda figure, form: b"")
        yield


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves anything in the user's caches of data sets."""
    import datasets

    folder = tmp_path_factory.getbasetemp() / "hf_datasets"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
