from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import GLUE, compose, needs_real_hub, real_hub, write_dataset

from dynarank.config.schema import to_config
from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.tasks import build_task
from dynarank.tasks.base import Task


def make(*overrides: str) -> Task:
    return build_task(to_config(compose(["output_dir=x", *overrides])).task)


def read(folder: Path, rows: dict[str, dict[str, list[Any]]], *overrides: str) -> Task:
    """CoLA's task on rows of our own."""
    write_dataset(folder / "datasets" / "nyu-mll" / "glue", "cola", rows)
    task = make("task=cola", *overrides)
    task.read(HubConfig(root=str(folder)))
    return task


GOOD = {"sentence": ["a cat", "the dog ran"], "label": [0, 1]}


def test_rows_arrive_as_they_are(tmp_path: Path) -> None:
    task = read(tmp_path, {"train": GOOD, "validation": GOOD})
    assert task.train["sentence"][:] == GOOD["sentence"]
    assert task.validation["validation"]["label"][:] == [0, 1]


BAD_ROWS = [
    (
        {"text": ["a"], "label": [0]},
        r"'train' has no column 'sentence'; it has text, label\. Name yours in task\.columns\.text",
    ),
    (
        {"sentence": ["a"], "labels": [0]},
        r"no column 'label'; it has sentence, labels\. Name yours in task\.columns\.label",
    ),
    (
        {"sentence": ["a", "b"], "label": [0, 2]},
        r"'train', row 1: label = 2 is not a class from 0 to 1 \(unacceptable, acc",
    ),
    ({"sentence": ["a", "b"], "label": [-1, -1]}, r"row 0: label = -1 .*\(2 such rows\)"),
    ({"sentence": ["a", "b"], "label": [0.5, 1]}, r"row 0: label = 0\.5"),
    ({"sentence": ["a"], "label": ["yes"]}, r"row 0: label = 'yes' is not a class from 0 to 1"),
    ({"sentence": ["a", None], "label": [0, 1]}, r"row 1: sentence is missing"),
    ({"sentence": [3, 4], "label": [0, 1]}, r"the column 'sentence' holds int64, not text"),
    ({"sentence": [], "label": []}, r"cola/train-00000-of-00001\.parquet is empty"),
]


@pytest.mark.parametrize(("rows", "said"), BAD_ROWS)
def test_unusable_data_is_named(rows: dict[str, list[Any]], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        read(tmp_path, {"train": rows, "validation": rows})


def test_a_number_that_is_not_finite_is_named(tmp_path: Path) -> None:
    rows = {"sentence1": ["a", "b"], "sentence2": ["a", "b"], "label": [1.0, float("nan")]}
    write_dataset(
        tmp_path / "datasets" / "nyu-mll" / "glue", "stsb", {"train": rows, "validation": rows}
    )
    with pytest.raises(UserError, match=r"row 1: label = None is not a finite number"):
        make("task=stsb").read(HubConfig(root=str(tmp_path)))


def test_a_missing_split_or_subset_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no split 'validation': it has train"):
        read(tmp_path, {"train": GOOD})
    with pytest.raises(UserError, match=r"task\.subset = nosuch: cannot be read"):
        make("task.subset=nosuch").read(HubConfig(root=str(tmp_path)))


def test_changed_data_is_read_anew(tmp_path: Path) -> None:
    changed = {"sentence": ["other", "words", "now"], "label": [1, 1, 0]}
    read(tmp_path, {"train": GOOD, "validation": GOOD})
    task = read(tmp_path, {"train": changed, "validation": changed})
    assert task.train["sentence"][:] == changed["sentence"]


def test_limited_rows_are_a_seeded_sample(tmp_path: Path) -> None:
    rows = {"sentence": [f"{i} cats" for i in range(50)], "label": [0, 1] * 25}
    samples = []
    for seed in (0, 0, 1):
        task = read(tmp_path, {"train": rows, "validation": rows}, "task.max_train_rows=10")
        task.read(HubConfig(root=str(tmp_path)), seed)
        samples.append(task.train["sentence"][:])
    assert len(samples[0]) == 10
    assert samples[0] == samples[1] != samples[2]


def tokenizer_of(hub_root: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(hub_root / "models/FacebookAI/roberta-base")


@pytest.mark.parametrize("subset", GLUE)
def test_every_glue_task_encodes_and_batches(subset: str, hub_root: Path) -> None:
    task, tokenizer = make(f"task={subset}"), tokenizer_of(hub_root)
    task.read(HubConfig(root=str(hub_root)))
    raw = task.train[0]
    task.encode(tokenizer, None)
    first = task.train_features[0]
    texts = [raw[column] for column in GLUE[subset][0]]
    assert first["input_ids"] == tokenizer(*texts)["input_ids"]
    assert first["labels"] == raw["label"]
    batch = task.collator(tokenizer)([task.train_features[i] for i in range(4)])
    assert batch["input_ids"].shape[1] == max(
        len(task.train_features[i]["input_ids"]) for i in range(4)
    )
    assert batch["labels"].dtype == (torch.float32 if subset == "stsb" else torch.int64)


def test_long_texts_are_cut(hub_root: Path) -> None:
    task = make("task.max_length=5")
    task.read(HubConfig(root=str(hub_root)))
    task.encode(tokenizer_of(hub_root), None)
    assert max(len(ids) for ids in task.train_features["input_ids"]) == 5


def test_encoding_is_cached_by_tokenizer_and_settings(hub_root: Path) -> None:
    def fingerprint(*overrides: str) -> str:
        task = make(*overrides)
        task.read(HubConfig(root=str(hub_root)))
        tokenizer = tokenizer_of(hub_root)
        tokenizer(
            ["used before"], truncation=True, max_length=3
        )  # changes its pickle, not its vocabulary
        task.encode(tokenizer, None)
        return str(task.train_features._fingerprint)

    assert fingerprint() == fingerprint()
    assert fingerprint() != fingerprint("task.max_length=5")


class Fixed(torch.nn.Module):
    """Gives the logits it is told, whatever the batch."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, **batch: torch.Tensor) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput

        return SequenceClassifierOutput(loss=torch.tensor(0.0), logits=self.logits)


def scores(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    metrics = task.scores("validation")
    for part in np.array_split(np.arange(len(labels)), 3):  # uneven batches
        task.score(
            Fixed(torch.tensor(logits[part])), {"labels": torch.tensor(labels[part])}, metrics
        )
    return {name: float(value) for name, value in metrics.compute().items()}


def test_classification_scores_equal_their_definitions() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, 50), rng.normal(size=(50, 2))
    guess = logits.argmax(1)
    tp, tn = int((guess & labels).sum()), int(((1 - guess) & (1 - labels)).sum())
    fp, fn = int((guess & (1 - labels)).sum()), int(((1 - guess) & labels).sum())
    mrpc = scores(make("task=mrpc"), logits, labels)
    assert mrpc == pytest.approx({"accuracy": (tp + tn) / 50, "f1": 2 * tp / (2 * tp + fp + fn)})
    matthews = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert scores(make("task=cola"), logits, labels) == pytest.approx(
        {"matthews": matthews}, abs=1e-6
    )


def test_one_class_for_every_row_correlates_with_nothing() -> None:
    logits = np.tile([0.0, 1.0], (10, 1))
    assert scores(make("task=cola"), logits, np.arange(10) % 3 % 2) == {"matthews": 0.0}


def test_regression_scores_equal_scipys() -> None:
    rng = np.random.default_rng(1)
    labels = rng.uniform(0, 5, 40).astype(np.float32).round(1)
    logits = (labels + rng.normal(size=40)).astype(np.float32)[:, None]
    found = scores(make("task=stsb"), logits, labels)
    assert found["pearson"] == pytest.approx(stats.pearsonr(logits[:, 0], labels)[0], abs=1e-5)
    assert found["spearman"] == pytest.approx(stats.spearmanr(logits[:, 0], labels)[0], abs=1e-5)


ROWS = {
    "cola": (8551, 1043),
    "sst2": (67349, 872),
    "mrpc": (3667, 408),
    "stsb": (5749, 1500),
    "rte": (2490, 277),
}
"""Rows of the local copies; the hub's MRPC has one more to train on."""


@needs_real_hub
@pytest.mark.parametrize("subset", ROWS)
def test_real_glue_is_read_whole(subset: str) -> None:
    task = make(f"task={subset}")
    task.read(HubConfig(root=str(real_hub())))
    assert (len(task.train), len(task.validation["validation"])) == ROWS[subset]


def test_an_unknown_family_is_named_with_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"task\.family = 'text_clasification' is not known.*'text_classification'"
    ):
        make("task.family=text_clasification")
