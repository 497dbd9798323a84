"""The doctor's findings about a machine, each from one that is made to have them."""

from __future__ import annotations

import builtins
import io
import os
import platform
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dynarank.commands import machine_checks
from dynarank.commands.checks import FAIL, NOTE, OK


def test_a_gpu_is_named_and_a_driver_that_torch_cannot_use_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    properties = SimpleNamespace(name="H100", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (70 * 2**30, 80 * 2**30))
    assert [one.found for one in machine_checks.devices()] == ["cuda:0 H100, 70 of 80 GiB free"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert [one.status for one in machine_checks.devices()] == [OK, NOTE]


def test_precisions_are_those_that_a_run_would_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    from dynarank.runs import preflight

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for hardware in (True, False):
        monkeypatch.setattr(preflight, "cpu_computes_bf16", lambda hardware=hardware: hardware)
        (found,) = machine_checks.precisions()
        assert ("bf16-mixed" in found.found) is hardware
        assert "16-mixed" not in found.found.replace("bf16-mixed", "")


@pytest.mark.parametrize(("free", "status"), [(0.5, FAIL), (5, NOTE), (50, OK)])
def test_a_disk_that_fills_is_named(
    free: float, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(free * 2**30)))
    found = list(machine_checks.disk())
    assert {one.status for one in found} == {status}
    assert "outputs" in found[0].found


@pytest.mark.parametrize(("free", "status"), [(0.06, NOTE), (8, OK)])
def test_a_containers_small_shared_memory_is_noted(
    free: float, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(free * 2**30)))
    assert [one.status for one in machine_checks.shared_memory()] == [status]


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, 16),
        ({}, 16),
        ({"cpu.max": "3200000 100000"}, 16),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
    ],
    ids=str,
)
def test_a_containers_limit_counts(
    files: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library reads the system's own files, in whose place a container's stand here."""
    system = {f"/sys/fs/cgroup/{name}": text for name, text in files.items()}
    real_open, real_exists = builtins.open, os.path.exists

    def open_file(name: Any, *arguments: Any, **options: Any) -> Any:
        if str(name) in system:
            return io.StringIO(system[str(name)])
        return real_open(name, *arguments, **options)

    def exists(name: Any) -> bool:
        is_limit = str(name).startswith("/sys/fs/cgroup/")
        return str(name) in system if is_limit else real_exists(name)

    monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 32)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(builtins, "open", open_file)
    monkeypatch.setattr(os.path, "exists", exists)
    assert machine_checks.allowed_cores() == cores


@pytest.mark.parametrize(
    ("cores", "status", "remedy"), [(1, NOTE, "OMP_NUM_THREADS=1"), (8, OK, "")]
)
def test_more_threads_than_cores_are_noted(
    cores: int, status: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_checks, "allowed_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    (found,) = machine_checks.threads()
    assert (found.status, found.remedy) == (status, remedy)


def test_outputs_that_git_would_pick_up_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert list(machine_checks.ignored()) == []  # no repository
    subprocess.run(["git", "init", "-q", "."], check=True)
    assert [one.status for one in machine_checks.ignored()] == [NOTE]
    Path(".gitignore").write_text("outputs/\n")
    assert list(machine_checks.ignored()) == []


@pytest.mark.parametrize(("name", "notes"), [("Windows", 1), ("Linux", 0), ("Darwin", 0)])
def test_a_system_that_training_was_not_tested_on_is_named(
    name: str, notes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: name)
    findings = list(machine_checks.system())
    assert len(findings) == notes
    assert all("single process" in check.found for check in findings)


def test_free_memory_is_named_with_what_a_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for kilobytes, status in ((8 * 2**20, OK), (2**20, NOTE)):
        table = f"MemTotal: {16 * 2**20} kB\nMemAvailable: {kilobytes} kB\n"
        monkeypatch.setattr(machine_checks.Path, "is_file", lambda path: True)
        monkeypatch.setattr(machine_checks.Path, "read_text", lambda path, shown=table: shown)
        (check,) = machine_checks.memory()
        assert check.status == status
        assert f"{kilobytes / 2**20:.1f} of 16.0 GiB free; dynarank budget --memory" in check.found
