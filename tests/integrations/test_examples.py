"""The examples run as they stand, without a hub."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from tiny import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
ARGUMENTS = {
    "plain_loop": ["--steps", "24"],
    "peft_model": ["--steps", "24"],
    "trainer": ["--steps", "24"],
    "sft_trainer": ["--steps", "24"],
    "lightning_module": ["--epochs", "2"],
}


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_an_example_runs_and_ends_at_budget(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "sft_trainer":
        pytest.importorskip("trl", reason="trl is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *ARGUMENTS[name]])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    if name == "plain_loop":
        assert "16 components, 4 layers" in printed
        return
    assert "ranks: {" in printed or "16 components in 4 layers" in printed
    (path,) = tmp_path.rglob("adapter/adapter_config.json")
    config = json.loads(path.read_text())
    assert config["peft_type"] == "LORA"
    assert sum(config["rank_pattern"].values()) == 16


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)
