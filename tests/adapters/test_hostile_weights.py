"""Sizes come from the weights that are there, counts have limits, and expressions end soon."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from dynarank.adapters import adapter_checks
from dynarank.adapters.adapter_checks import check_peft_adapter, check_targets, check_weights
from dynarank.adapters.inject import inject
from dynarank.adapters.peft_format import write_peft_adapter
from dynarank.errors import UserError


def write_header(path: Path, shapes: dict[str, list[int]]) -> Path:
    """Write a safetensors file whose tensors have no bytes."""
    entry = {"dtype": "F32", "data_offsets": [0, 0]}
    header = json.dumps({name: {**entry, "shape": shape} for name, shape in shapes.items()})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    return path


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    model = nn.ModuleDict({"body": nn.Linear(40, 6), "head": nn.Linear(6, 2)})
    layer = inject(model, ["body"], r=3)["body"]
    nn.init.ones_(layer.lora_c)
    write_peft_adapter(model, tmp_path / "adapter", "base", head=["head"])
    check_peft_adapter(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("shape", [[2**40, 0], [0], [0, 2**40], [3, 0, 4]], ids=str)
def test_a_tensor_without_elements_is_refused(adapter: Path, shape: list[int]) -> None:
    path = adapter / adapter_checks.WEIGHTS
    write_header(path, {"a.lora_A.weight": shape})
    for check in (lambda: check_weights(path), lambda: check_peft_adapter(adapter)):
        with pytest.raises(UserError, match="has no elements"):
            check()


def test_very_many_tensors_are_refused(tmp_path: Path) -> None:
    path = write_header(tmp_path / "many", {f"t{index}": [0] for index in range(100_001)})
    with pytest.raises(UserError, match="at most 100000"):
        check_weights(path)


@pytest.mark.parametrize(
    "change",
    [{"r": 4}, {"lora_alpha": 40}, {"rank_pattern": {"^body": 40}}, {"alpha_pattern": {"^b": 4}}],
    ids=str,
)
def test_a_rank_above_those_of_the_weights_is_refused(
    adapter: Path, change: dict[str, Any]
) -> None:
    path = adapter / adapter_checks.CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | change))
    with pytest.raises(UserError, match="none above 3 fits the weights"):
        check_peft_adapter(adapter)


@pytest.mark.parametrize(
    "target",
    ["(a+)+$", "(.*)*x", "[ab]+c", "(a|a)*b", ".*.*.*.*x", "a?a?a?a?aa", "(a{9}){9}", "a" * 201, 3],
    ids=str,
)
def test_targets_that_could_run_for_ever_are_refused(target: Any) -> None:
    for targets in (target, ["query", target]):
        with pytest.raises(UserError, match="at most 3 repetitions"):
            check_targets(Path("origin.json"), targets)


def test_the_targets_that_are_used_pass_and_end_soon() -> None:
    from dynarank.pretrained.architectures import ARCHITECTURES

    for architecture in ARCHITECTURES.values():
        check_targets(Path("origin.json"), list(architecture.targets))
    with pytest.raises(UserError, match="at most 10000"):
        check_targets(Path("origin.json"), ["query"] * 10_001)
