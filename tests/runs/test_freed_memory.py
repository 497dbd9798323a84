"""A process that trains on CPUs keeps the memory that it frees."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from dynarank.runs import freed_memory

FAULTS = """
import mmap, resource, sys
from dynarank.runs.freed_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
blocks = [bytearray(2**23) for _ in range(3)]
del blocks
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    blocks = [bytearray(b"x") * 2**23 for _ in range(3)]
    del blocks
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * mmap.PAGESIZE / 2**20)
"""
"""Print the MiB that twenty rounds of taking and freeing 24 MiB fetched from the system."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc")
def test_freed_memory_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in freed_memory._USERS_CHOICE:
        monkeypatch.delenv(name, raising=False)
    fetched = {}
    for kind in ("keep", "give back"):
        command = [sys.executable, "-c", FAULTS, kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        fetched[kind] = float(done.stdout)
    assert fetched["keep"] < 50 < fetched["give back"]


@pytest.mark.parametrize("name", freed_memory._USERS_CHOICE)
def test_a_choice_of_the_users_own_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "0")
    assert not freed_memory.keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in freed_memory._USERS_CHOICE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not freed_memory.keep_freed_memory()
