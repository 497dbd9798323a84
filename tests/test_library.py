from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dynarank

FRAMEWORK = {
    "lightning",
    "pytorch_lightning",
    "hydra",
    "omegaconf",
    "transformers",
    "datasets",
    "peft",
    "wandb",
}


def imported_by(code: str, folder: Path) -> set[str]:
    """Top-level modules that a fresh interpreter has after `code`."""
    report = (
        "; import sys, json; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + report],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("name", ["__version__", "budget_schedule"])
def test_import_alone_loads_nothing_heavy(name: str, tmp_path: Path) -> None:
    modules = imported_by(f"import dynarank; dynarank.{name}", tmp_path)
    assert "dynarank" in modules
    assert not modules & (FRAMEWORK | {"torch", "numpy"})


def test_the_library_loads_torch_and_no_framework(tmp_path: Path) -> None:
    modules = imported_by(
        "from dynarank import *; DoRALinear, inject, RankAllocator, merge", tmp_path
    )
    assert "torch" in modules
    assert not modules & FRAMEWORK


@pytest.mark.parametrize("name", dynarank.__all__)
def test_every_public_name_resolves_to_its_object(name: str) -> None:
    thing = getattr(dynarank, name)
    assert thing.__name__ == name
    assert thing is getattr(importlib.import_module(thing.__module__), name)
    assert thing.__doc__


def test_public_names_are_sorted_and_once() -> None:
    assert dynarank.__all__ == sorted(set(dynarank.__all__))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="DoraLinear"):
        dynarank.DoraLinear  # noqa: B018
    with pytest.raises(ImportError):
        from dynarank import DoraLinear  # noqa: F401
