"""What the README shows is true: its example runs, its commands and files exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CONF, REPOSITORY

README = (REPOSITORY / "README.md").read_text()
EXAMPLE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.splitlines()) < 25


def test_the_example_runs_and_peft_loads_what_it_writes(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft
    from transformers import AutoModelForSequenceClassification

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    ids = torch.randint(3, 30, (4, 8))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.tensor([0, 1, 0, 1]),
    }
    base = str(hub_root / "models/FacebookAI/roberta-base")
    space: dict[str, Any] = {"base": base, "batches": [batch] * 30}
    exec(EXAMPLE, space)
    allocator, model = space["allocator"], space["model"].eval()
    assert allocator.frozen
    assert sum(allocator.ranks().values()) == 4 * len(allocator.layers)
    loaded = peft.PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=2),
        str(tmp_path / "adapter"),
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize(
    "group",
    ["model", "task", "method", "budget", "dem", "trainer", "logger", "experiment", "scale"],
)
def test_every_choice_is_in_the_table(group: str) -> None:
    row = next(line for line in README.splitlines() if line.startswith(f"| `{group}="))
    for file in (CONF / group).glob("*.yaml"):
        assert f"`{file.stem}`" in row


def test_every_path_named_exists() -> None:
    named = re.findall(r"`((?:conf|tasks|methods|adapters|benchmarks)/[\w/.]+)`", README)
    assert named
    for path in named:
        assert (REPOSITORY / path).exists() or (REPOSITORY / "src" / "dynarank" / path).exists(), (
            path
        )
