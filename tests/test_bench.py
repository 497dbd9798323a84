"""The benchmark runs, compares models of one size, and writes its table and its picture."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import REPOSITORY


def _module(name: str) -> Any:
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))  # as for a script that lies there
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def bench() -> Any:
    return _module("bench")


@pytest.fixture(scope="module")
def contenders() -> Any:
    return _module("step_contenders")


def test_it_writes_a_table_of_all_contenders_and_a_picture(bench: Any, tmp_path: Path) -> None:
    out, picture = tmp_path / "bench.md", tmp_path / "bench.svg"
    shape = [
        "--parts",
        "steps",
        "--shapes",
        "tiny",
        "--lengths",
        "8",
        "--rounds",
        "2",
        "--blocks",
        "1",
    ]
    bench.main([*shape, "--dropouts", "0.1", "--out", str(out), "--picture", str(picture)])
    rows = [line for line in out.read_text().splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0].strip("| ") for row in rows[2:]] == [
        *("bound", "PEFT LoRA", "PEFT AdaLoRA", "authors' formulation", "dynarank"),
        "dynarank, frozen, half at rank 0",
    ]
    assert picture.read_text().startswith("<?xml")


def test_the_contenders_train_as_many_components(contenders: Any) -> None:
    def components(build: Any) -> int:
        model = build("tiny", 1, 0.0).model
        return sum(len(p) for name, p in model.named_parameters() if "lora_A" in name)

    whole = components(contenders.peft_lora)
    assert whole == 6 * contenders.RANK
    assert components(contenders.peft_adalora) == components(contenders.authors) == whole
    assert components(contenders.dynarank) == whole
    assert components(contenders.dynarank_frozen) == 3 * 8


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_trains_every_contender_but_the_bound(contenders: Any, precision: str) -> None:
    tokens = torch.randint(5, 1000, (2, 8))
    for build in contenders.BUILDERS:
        contender = build("tiny", 1, 0.0, precision)
        before = {name: p.clone() for name, p in contender.model.named_parameters()}
        contender.step(tokens)
        after = contender.model.named_parameters()
        moved = [name for name, p in after if not torch.equal(p, before[name])]
        assert bool(moved) == (contender.name != "bound"), contender.name


def test_twice_the_blocks_have_twice_the_factors_and_no_base_weights(bench: Any) -> None:
    factors = _module("factor_costs").factors

    def size(blocks: int) -> int:
        layers = factors(blocks=blocks, width=8, key=4, inner=16).values()
        assert sum(layer.base.weight.untyped_storage().nbytes() for layer in layers) == 28 * blocks
        return sum(layer.lora_A.numel() + layer.lora_B.numel() for layer in layers)

    assert size(2) == 2 * size(1) > 0


def test_the_machine_is_named(bench: Any) -> None:
    assert torch.__version__ in bench.machine()
