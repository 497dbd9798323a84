from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import compose

from dynarank.config.schema import to_config
from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.tasks import build_task
from dynarank.training.data import LengthGroupedSampler, TaskData

LENGTHS = np.random.default_rng(0).integers(3, 60, size=1003)


def order(seed: int = 1, epoch: int = 0, batch_size: int = 16) -> np.ndarray:
    sampler = LengthGroupedSampler(LENGTHS, batch_size, seed)
    sampler.set_epoch(epoch)
    return np.array(list(sampler))


def test_every_row_once() -> None:
    assert sorted(order()) == list(range(1003))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert (order(epoch=3) == order(epoch=3)).all()
    assert (order(epoch=3) != order(epoch=4)).any()
    assert (order(seed=1) != order(seed=2)).any()


def test_batches_hold_rows_of_like_length() -> None:
    def padding(rows: np.ndarray) -> int:
        batches = [LENGTHS[rows[start : start + 16]] for start in range(0, len(rows), 16)]
        return sum(int(batch.max() * len(batch) - batch.sum()) for batch in batches)

    random = np.random.default_rng(1).permutation(1003)
    assert padding(order()) < 0.3 * padding(random)


def test_batches_are_shuffled_not_longest_first() -> None:
    means = [LENGTHS[order()[start : start + 16]].mean() for start in range(0, 992, 16)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


@pytest.mark.parametrize("batch_size", [1, 16, 2000])
def test_any_batch_size(batch_size: int) -> None:
    assert sorted(order(batch_size=batch_size)) == list(range(1003))


@pytest.mark.parametrize("name", ["cola", "squad"])
def test_a_seeded_sample_of_whole_rows_is_scored_until_all_are_wanted(
    name: str, hub_root: Path
) -> None:
    from transformers import AutoTokenizer

    windows = (
        ["task.max_length=14", "task.max_question=4", "task.stride=2"] if name == "squad" else []
    )
    config = to_config(
        compose(["output_dir=x", f"task={name}", "task.validation_sample=5", *windows])
    )
    task, tokenizer = (
        build_task(config.task),
        AutoTokenizer.from_pretrained(hub_root / "models/FacebookAI/roberta-base"),
    )
    task.read(HubConfig(str(hub_root)))
    task.encode(tokenizer, None)  # type: ignore[arg-type]
    features = task.validation_features["validation"]

    def scored(seed: int, sample: int | None) -> list[int]:
        data = TaskData(task, tokenizer, 4, seed)
        data.sample = sample
        return sorted(
            int(index) for batch in data.val_dataloader()[0].batch_sampler for index in batch
        )

    rows = task.rows_of(features)
    chosen = scored(0, 5)
    assert len(set(rows[chosen])) == 5
    assert (
        sorted(np.flatnonzero(np.isin(rows, rows[chosen]))) == chosen
    )  # a row's windows stay together
    assert chosen == scored(0, 5) != scored(1, 5)
    assert scored(0, None) == list(range(len(features)))
    assert TaskData(task, tokenizer, 4, 0).sample == 5
    assert name == "cola" or len(features) > 18


def test_a_sample_without_a_score_is_refused_before_training(
    hub_root: Path, tmp_path: Path
) -> None:
    """One row alone is no correlation; which rows are drawn is the seed's matter."""
    from transformers import AutoTokenizer

    overrides = ["output_dir=x", "task=stsb", "task.validation_sample=1"]
    task = build_task(to_config(compose(overrides)).task)
    tokenizer = AutoTokenizer.from_pretrained(hub_root / "models/FacebookAI/roberta-base")
    task.read(HubConfig(str(hub_root)))
    task.encode(tokenizer, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"task\.validation_sample = 1: label is .* Take more rows"):
        TaskData(task, tokenizer, batch_size=4, seed=0)
    said = r"task\.validation_sample = 1: of validation, that is 1 inputs for 2 devices\. Take at"
    with pytest.raises(UserError, match=said):
        TaskData(task, tokenizer, batch_size=4, seed=0, world_size=2)
