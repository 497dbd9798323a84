"""What the pages of docs/ show can be typed: commands compose, settings exist, anchors lead on."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from tiny import REPOSITORY, compose

DOCS = REPOSITORY / "docs"
SETTINGS = "settings.md"
PAGES = {page.name: page.read_text() for page in [REPOSITORY / "README.md", *DOCS.glob("*.md")]}
KNOWN_SETTINGS = set(re.findall(r"^\| `([\w.]+)`", PAGES[SETTINGS], re.MULTILINE))
GROUPS = "|".join(sorted({name.split(".")[0] for name in KNOWN_SETTINGS if "." in name}))
PLACEHOLDERS = {
    "TASK": "mrpc",
    "NAME": "cola",
    "METHOD": "lora",
    "EPOCHS": "2",
    "LR": "1e-3",
    "BEST_RATE": "1e-3",
    "SEED": "1",
    "MEAN_RANK": "4",
}
"""Words of the pages that stand for a value which is no text."""


def train_commands(text: str) -> list[list[str]]:
    """The words behind `dynarank train` or `budget` of each command in a page's code."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(r"^    (?:dynarank|python train\.py) .*$", joined, re.MULTILINE)
    lines += re.findall(r"`(dynarank [^`\n]+)`", joined)
    commands = []
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        if program == "dynarank" and words[0] not in ("train", "budget"):
            continue
        commands.append(words[1:] if program == "dynarank" else words)
    return commands


def typed_overrides(words: list[str]) -> list[str]:
    """One run's overrides of a command: its first value of each list, without Hydra's own."""
    overrides = []
    for word in words:
        name, is_setting, value = word.partition("=")
        if not is_setting or name.startswith(("hydra", "+hydra")) or "interval(" in value:
            continue
        # resume=auto wants the run's folder, which is Hydra's own.
        if name == "resume":
            continue
        first = value if value.startswith("[") else value.split(",")[0]
        overrides.append(f"{name}={PLACEHOLDERS.get(first, first)}")
    return overrides


@pytest.mark.parametrize("page", PAGES)
def test_every_train_command_composes(page: str, tmp_path: Path) -> None:
    from dynarank.config.schema import to_config

    tried = set()
    for words in train_commands(PAGES[page]):
        overrides = tuple(typed_overrides(words))
        if overrides and overrides not in tried:
            tried.add(overrides)
            to_config(compose([*overrides, f"output_dir={tmp_path}"]))


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_named_is_one(page: str) -> None:
    for code in re.findall(r"`([^`\n]+)`", PAGES[page]):
        for name in re.findall(rf"(?<![\w./-])((?:{GROUPS})\.[a-z_.0-9]+)(?==|$)", code):
            is_group = any(known.startswith(f"{name}.") for known in KNOWN_SETTINGS)
            is_code = name.endswith(".py") or name == "optimizer.step"
            assert name in KNOWN_SETTINGS or is_group or is_code, name


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_parses(page: str) -> None:
    for block in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES)
def test_every_anchor_is_a_heading(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([\w.]*)#([\w-]+)\)", PAGES[page]):
        headings = re.findall(r"^#+ (.*)$", PAGES[target or page], re.MULTILINE)
        slugs = {re.sub(r"[^\w\s-]", "", title.lower()).replace(" ", "-") for title in headings}
        assert anchor in slugs, f"{target}#{anchor}"


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = (REPOSITORY / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named = re.findall(r"- (\w+\.md)", navigation)
    assert sorted(named) == sorted(page.name for page in DOCS.glob("*.md"))
