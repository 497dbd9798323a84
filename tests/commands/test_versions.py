"""Installed versions against required ones, each from a machine that is made to have them."""

from __future__ import annotations

import importlib.metadata
import tomllib

import pytest
from tiny import REPOSITORY

from dynarank.commands import source_checks, versions
from dynarank.commands.checks import FAIL, OK
from dynarank.commands.doctor import examine

INSTALLED = {"torch": "2.13.0+cpu", "lightning": "2.6.6", "transformers": "5.23.0"}
STATED = [
    "torch>=2.10",
    "lightning<2.7,>=2.6.6 ; extra == 'train'",
    'transformers>=5.3; extra == "train"',
    "ruff>=0.14; extra == 'dev'",
    "never>=1; python_version < '3' and extra == 'train'",
]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is installed, to be changed."""
    there = dict(INSTALLED)

    def version(name: str) -> str:
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: STATED)
    monkeypatch.setattr(importlib.metadata, "version", version)
    return there


def test_packages_that_fit_take_one_line(packages: dict[str, str]) -> None:
    (found,) = source_checks.packages()
    assert (found.status, found.found) == (
        OK,
        "3 fit: torch 2.13.0+cpu, lightning 2.6.6, transformers 5.23.0",
    )


@pytest.mark.parametrize(
    ("name", "version", "said", "remedy"),
    [
        ("torch", "2.9.1", "torch 2.9.1 does not fit >=2.10", "pip install 'torch>=2.10'"),
        ("torch", "2.10.0rc1", "torch 2.10.0rc1 does not fit >=2.10", "pip install 'torch>=2.10'"),
        ("transformers", None, "transformers is missing", ".[train]"),
        ("torch", None, "torch is missing", "pip install 'torch>=2.10'"),
        ("lightning", "2.6.2", "steals credentials", "pip install 'lightning>=2.6.6,<2.7'"),
        ("lightning", "2.6.3", "steals credentials", "pip install 'lightning>=2.6.6,<2.7'"),
        (
            "lightning",
            "2.6.5",
            "lightning 2.6.5 does not fit >=2.6.6,<2.7",
            "lightning>=2.6.6,<2.7",
        ),
        (
            "lightning",
            "2.7.0",
            "lightning 2.7.0 does not fit >=2.6.6,<2.7",
            "lightning>=2.6.6,<2.7",
        ),
    ],
)
def test_each_that_does_not_takes_its_own(
    name: str, version: str | None, said: str, remedy: str, packages: dict[str, str]
) -> None:
    packages.pop(name)
    if version is not None:
        packages[name] = version
    bad, rest = source_checks.packages()
    assert (bad.status, rest.status) == (FAIL, OK)
    assert said in bad.found
    assert remedy in bad.remedy


def test_nothing_is_imported_beside_a_release_known_to_be_bad(packages: dict[str, str]) -> None:
    packages["lightning"] = "2.6.3"
    found = examine([lambda: pytest.fail("looked further")])
    assert [one.name for one in found] == ["python", "package", "packages"]


@pytest.mark.parametrize(
    ("stated", "version", "fits"),
    [
        ("torch>=2.10", "2.9", False),
        ("torch>=2.10", "2.10.0+cpu", True),
        ("torch>=2.10", "2.10", True),
        ("torch>=2.10", "2.10.0rc1", False),
        ("torch>=2.10", "2.11.0rc1", True),
        ("torch~=2.10", "2.13.0", True),
        ("torch~=2.10", "3.0", False),
        ("torch==2.13.*", "2.13.0+cpu", True),
        ("torch[extra]>=2.6.6", "2.6.6", True),
        ("torch!=2.11,>=2.10", "2.11", False),
        ("torch", "0.1", True),
        ("torch (>=2.10)", "2.9", False),
    ],
)
def test_requirements_of_every_form_are_read(
    stated: str, version: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [stated])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    (found,) = versions.requirements()
    assert (found.name, found.fits) == ("torch", fits)
    assert (found.trouble is None) is fits


def test_what_this_project_states_is_read() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    stated = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    assert all(versions._parse(text) is not None for text in stated)
