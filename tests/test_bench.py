"""The benchmark runs, compares models of one size, and writes its table and its picture."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import REPOSITORY


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("bench", REPOSITORY / "benchmarks/bench.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = module
    spec.loader.exec_module(module)
    return module


def test_it_writes_a_table_of_all_contenders_and_a_picture(bench: Any, tmp_path: Path) -> None:
    out, picture = tmp_path / "bench.md", tmp_path / "bench.svg"
    shape = ["--shapes", "tiny", "--lengths", "8", "--rounds", "2", "--blocks", "1"]
    bench.main([*shape, "--dropouts", "0.1", "--out", str(out), "--picture", str(picture)])
    rows = [line for line in out.read_text().splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0].strip("| ") for row in rows[2:]] == [
        *("bound", "PEFT LoRA", "PEFT AdaLoRA", "authors' formulation", "dynarank"),
        "dynarank, frozen, half at rank 0",
    ]
    assert picture.read_text().startswith("<?xml")


def test_the_contenders_train_as_many_components(bench: Any) -> None:
    def components(build: Any) -> int:
        model = build("tiny", 1, 0.0).model
        return sum(len(p) for name, p in model.named_parameters() if "lora_A" in name)

    whole = components(bench.peft_lora)
    assert whole == 6 * bench.RANK
    assert components(bench.peft_adalora) == components(bench.authors) == whole
    assert components(bench.dynarank) == whole
    assert components(bench.dynarank_frozen) == 3 * 8


def test_a_step_trains_every_contender_but_the_bound(bench: Any) -> None:
    tokens = torch.randint(5, 1000, (2, 8))
    for build in bench.BUILDERS:
        contender = build("tiny", 1, 0.0)
        before = {name: p.clone() for name, p in contender.model.named_parameters()}
        contender.step(tokens)
        after = contender.model.named_parameters()
        moved = [name for name, p in after if not torch.equal(p, before[name])]
        assert bool(moved) == (contender.name != "bound"), contender.name
