"""The examples in docstrings of the public interface run, and give what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

import dynarank

MODULES = sorted({f"dynarank.{module}" for module in dynarank._MODULES.values()})
"""The modules that define the names of the library."""


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_say(name: str) -> None:
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
