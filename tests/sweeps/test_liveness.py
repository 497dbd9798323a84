"""Whether a run's process is alive, as its record and the system tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynarank.sweeps.liveness import is_alive


def record_of(process: int, folder: Path) -> Path:
    path = folder / "running.json"
    path.write_text(json.dumps({"pid": process}))
    return path


def test_a_process_is_alive_until_it_has_ended(tmp_path: Path) -> None:
    waits = [sys.executable, "-c", "input()"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        record = record_of(process.pid, tmp_path)
        assert is_alive(record)
    assert not is_alive(record)


def test_another_users_process_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(process: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbidden)  # as the system answers for it
    assert is_alive(record_of(os.getpid(), tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": "x"}', '{"pid": 1e400}'])
def test_a_damaged_record_names_no_process(text: str, tmp_path: Path) -> None:
    (tmp_path / "running.json").write_text(text)
    assert not is_alive(tmp_path / "running.json")
