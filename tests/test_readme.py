"""What the README shows is true: its example runs, its commands and files exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CONF, REPOSITORY

from dynarank.commands.main import COMMANDS as COMMAND_NAMES

DOCS = REPOSITORY / "docs"
README = (REPOSITORY / "README.md").read_text()
COMMANDS = (REPOSITORY / "docs" / "commands.md").read_text()
TEXTS = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text()
    for path in [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *DOCS.glob("*.md")]
}
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
    row = next(line for line in COMMANDS.splitlines() if line.startswith(f"| `{group}="))
    for file in (CONF / group).glob("*.yaml"):
        assert f"`{file.stem}`" in row


@pytest.mark.parametrize("page", TEXTS)
def test_every_path_named_exists(page: str) -> None:
    for path in re.findall(
        r"`((?:conf|tasks|methods|adapters|benchmarks|src)/[\w/.]+)`", TEXTS[page]
    ):
        inside = REPOSITORY / "src" / "dynarank" / path
        assert (REPOSITORY / path).exists() or inside.exists(), path


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    folder = (REPOSITORY / page).parent
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXTS[page]):
        if "://" not in target:
            assert (folder / target).exists(), target


@pytest.mark.parametrize("page", DOCS.glob("*.md"), ids=lambda page: page.name)
def test_no_link_leaves_the_site(page: Path) -> None:
    """A page of docs/ links to files of docs/ alone: only those are in the site."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (DOCS / target).resolve().is_relative_to(DOCS.resolve()), target


@pytest.mark.parametrize("page", TEXTS)
def test_every_command_named_is_one(page: str) -> None:
    for word in re.findall(r"^(?:    |`)dynarank ([a-z]+)", TEXTS[page], re.MULTILINE):
        assert word in COMMAND_NAMES


def test_the_readme_fits_150_lines() -> None:
    assert len(README.splitlines()) <= 150
