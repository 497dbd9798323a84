"""Several processes train as one does: the same masks and scores, weights within rounding."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import start
from tiny import (
    REPOSITORY,
    command,
    glue_rows,
    newest_checkpoint,
    summary_rows,
    tiny_bart,
    tiny_roberta,
    write_dataset,
    write_model,
)

from dynarank.sweeps.sweep import read_sweep
from dynarank.training.data import LengthGroupedSampler, even_batches

SHORT = [
    "trainer.epochs=3",
    "trainer.batch_size=8",
    "budget.interval=1",
    "optimizer.lr=0.01",
    "method.dropout=0",
]


@pytest.fixture(scope="module")
def calm_hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models without dropout, and splits whose last batches are uneven."""
    root = tmp_path_factory.mktemp("calm")
    still = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    write_model(root / "models/FacebookAI/roberta-base", tiny_roberta(**still))
    write_model(root / "models/facebook/bart-base", tiny_bart(dropout=0.0))
    write_dataset(
        root / "datasets/nyu-mll/glue",
        "stsb",
        {"train": glue_rows("stsb", 45, 0), "validation": glue_rows("stsb", 19, 7)},
    )
    write_dataset(
        root / "datasets/nyu-mll/glue",
        "cola",
        {"train": glue_rows("cola", 45, 0), "validation": glue_rows("cola", 19, 7)},
    )
    write_dataset(
        root / "datasets/EdinburghNLP/xsum",
        "default",
        {"train": summary_rows(45, 0), "validation": summary_rows(13, 7)},
    )
    return root


SUMMARIES = [
    "task=xsum",
    "model=bart_base",
    "task.generate.max_length=8",
    "task.max_source=40",
    "trainer.epochs=1",
]
CASES = {
    "regression": ["task=stsb"],
    "sensitivity": [  # and classes, and orthogonal components
        "task=cola",
        "method=dynarank",
        "method.score=sensitivity",
        "method.init=orthogonal",
        "method.train_c=true",
        "method.orthogonality=0.5",
    ],
    "fisher": ["task=stsb", "trainer.accumulate=2", "method=dynarank"],  # and accumulation
    "adalora": ["task=stsb", "method=adalora"],
    "summaries": SUMMARIES,
}


@pytest.fixture(scope="module")
def alone(calm_hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One process's folder, by case."""
    known: dict[str, Path] = {}

    def find(case: str) -> Path:
        if case not in known:
            known[case] = tmp_path_factory.mktemp("alone")
            assert start(known[case], calm_hub, [*SHORT, *CASES[case]]) == [0]
        return known[case]

    return find


@pytest.mark.parametrize(
    ("strategy", "case"),
    [("ddp", case) for case in CASES]
    + [("fsdp", case) for case in ("regression", "fisher", "adalora", "summaries")],
)
def test_two_processes_train_as_one(
    strategy: str, case: str, alone: Any, calm_hub: Path, tmp_path: Path
) -> None:
    assert start(tmp_path, calm_hub, [*SHORT, f"trainer={strategy}", *CASES[case]], world=2) == [
        0,
        0,
    ]
    one, two = (newest_checkpoint(folder)["state_dict"] for folder in (alone(case), tmp_path))
    assert list(one) == list(two)
    for name in one:
        if name.endswith(".mask"):
            assert torch.equal(one[name], two[name]), name
        else:
            assert torch.allclose(one[name], two[name], rtol=0, atol=1e-6), name
    histories = [
        json.loads((folder / "rank_history.json").read_text()) for folder in (alone(case), tmp_path)
    ]
    assert histories[0] == histories[1]
    records = [
        json.loads((folder / "metrics.json").read_text()) for folder in (alone(case), tmp_path)
    ]
    assert records[0]["metrics"] == pytest.approx(
        records[1]["metrics"], abs=2e-3
    )  # of a model that answers nearly alike
    losses = []
    for folder in (alone(case), tmp_path):
        rows = csv.DictReader((folder / "metrics.csv").open())
        losses.append([float(row["train/loss"]) for row in rows if row["train/loss"]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    if case == "summaries":
        assert (tmp_path / "predictions.jsonl").read_text() == (
            alone(case) / "predictions.jsonl"
        ).read_text()


def drift(rank: int) -> None:
    """Let the scores of the second process be off."""
    from dynarank.allocation.allocator import RankAllocator

    update = RankAllocator.update

    def drifting(self: RankAllocator) -> None:
        update(self)
        if rank:
            self.ema = self.ema.flip(0)

    RankAllocator.update = drifting  # type: ignore[method-assign]


def test_scores_that_drift_apart_do_not_part_the_ranks(
    alone: Any, calm_hub: Path, tmp_path: Path
) -> None:
    assert start(tmp_path, calm_hub, [*SHORT, "task=stsb", "trainer=ddp"], drift, world=2) == [0, 0]
    for name in ("ranks.json", "rank_history.json"):
        assert (tmp_path / name).read_text() == (alone("regression") / name).read_text()


def disagree(rank: int) -> None:
    """Let the second process be configured differently."""
    import dynarank.runs.prepare as module

    identity = module.identity
    module.identity = lambda config, **found: identity(config, **found, rank=rank)  # type: ignore[assignment]


def test_ranks_that_are_configured_differently_do_not_start(calm_hub: Path, tmp_path: Path) -> None:
    assert 1 in start(tmp_path, calm_hub, [*SHORT, "task=stsb", "trainer=ddp"], disagree, world=2)
    assert not (tmp_path / "metrics.json").exists()


def test_points_of_a_sweep_that_are_distributed_keep_their_settings(
    calm_hub: Path, tmp_path: Path
) -> None:
    """By the command: two points, each started again by Lightning as a second rank."""
    settings = [
        f"hub.root={calm_hub}",
        "logger=none",
        "trainer.accelerator=cpu",
        *SHORT,
        "task=stsb",
        "trainer=ddp",
    ]
    swept = ["method.alpha=4,8", f"hydra.sweep.dir={tmp_path}"]
    path = str(REPOSITORY / "src")
    done = command("-m", *settings, *swept, folder=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    for folder in (point.folder for point in read_sweep(tmp_path)):
        identity = json.loads(max((folder / "checkpoints").glob("*.json")).read_text())["identity"]
        alone = tmp_path / f"alone{identity['method.alpha']:g}"
        assert start(
            alone, calm_hub, [*SHORT, "task=stsb", f"method.alpha={identity['method.alpha']}"]
        ) == [0]
        one, two = (newest_checkpoint(place)["state_dict"] for place in (alone, folder))
        assert all(
            float((one[name].float() - two[name].float()).abs().max()) <= 1e-6 for name in one
        )


def count_shards(rank: int) -> None:
    """Write down which parameters are sharded, once training starts."""
    from dynarank.checkpoints.callback import Checkpoints

    begin = Checkpoints.on_train_start

    def look(self: Any, trainer: Any, module: Any) -> None:
        begin(self, trainer, module)
        found = {
            name: hasattr(p, "to_local") and p.to_local().numel() / p.numel()
            for name, p in module.named_parameters()
        }
        trained = {name: bool(p.requires_grad) for name, p in module.named_parameters()}
        (self.folder.parent / f"shards{rank}.json").write_text(json.dumps([found, trained]))

    Checkpoints.on_train_start = look  # type: ignore[method-assign]


def test_fsdp_shards_what_is_frozen_and_only_that(calm_hub: Path, tmp_path: Path) -> None:
    assert start(
        tmp_path, calm_hub, [*SHORT, "task=stsb", "trainer=fsdp"], count_shards, world=2
    ) == [0, 0]
    shares, trained = json.loads((tmp_path / "shards1.json").read_text())
    assert all((share is False) == trained[name] for name, share in shares.items())
    assert np.mean([share for name, share in shares.items() if not trained[name]]) == pytest.approx(
        0.5, abs=0.05
    )


@pytest.mark.parametrize("rows", [1003, 992, 993, 7])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_the_batches_of_one_process(rows: int, world: int) -> None:
    lengths = np.random.default_rng(0).integers(3, 60, size=rows)
    single = list(LengthGroupedSampler(lengths, 16, seed=1))
    samplers = [LengthGroupedSampler(lengths, 16, 1, rank, world) for rank in range(world)]
    shares = [list(sampler) for sampler in samplers]
    assert [len(share) for share in shares] == [len(sampler) for sampler in samplers]
    local = 16 // world
    for index in range(samplers[0].batches):
        together = [row for share in shares for row in share[index * local : (index + 1) * local]]
        assert sorted(together) == sorted(single[index * 16 : (index + 1) * 16])
    left_out = len(single) - sum(len(share) for share in shares)
    assert left_out == (rows % 16 if rows % 16 < world else 0)


@pytest.mark.parametrize("rows", [1, 9, 16, 19, 1500])
@pytest.mark.parametrize("world", [1, 2, 8])
def test_every_rank_has_rows_of_every_validation_batch(rows: int, world: int) -> None:
    if rows < world:
        return
    batches = even_batches(np.arange(rows), 8, world)
    assert sorted(np.concatenate(batches)) == list(range(rows))
    assert all(len(batch[rank::world]) > 0 for batch in batches for rank in range(world))
    assert max(len(batch) for batch in batches) < 8 + world
