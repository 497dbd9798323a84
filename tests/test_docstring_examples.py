"""The examples in docstrings of the public interface run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import dynarank

INTEGRATIONS = ["peft", "peft_config", "finalizing", "settings", "transformers", "lightning"]
MODULES = sorted(
    {f"dynarank.{module}" for module in dynarank._MODULES.values()}
    | {f"dynarank.integrations.{module}" for module in INTEGRATIONS}
    | {"dynarank.methods"}
)
"""The modules of the names that the library offers."""


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore")  # of libraries, on models as small as these
def test_the_examples_of_a_module_give_what_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Its first import lets wandb print a line, which no example expects.
    importlib.import_module("transformers.trainer")
    module = importlib.import_module(name)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, _ = doctest.testmod(module, optionflags=flags)
    assert failed == 0
