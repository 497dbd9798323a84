"""Sweeps: a process a point, failures recorded, finished runs kept. Points are a small script's, or real tiny runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import REPOSITORY, tiny_roberta, write_dataset, write_model

from dynarank.errors import UserError
from dynarank.report.__main__ import main as report_main
from dynarank.training import sweep
from dynarank.training.sweep import read_sweep

SCRIPT = """
import json, os, sys, time
from pathlib import Path
given = dict(one.split("=", 1) for one in sys.argv[1:])
assert given.pop("hydra.mode") == "RUN"
folder = Path(given.pop("hydra.run.dir").strip("'"))
if given.get("x") == "2":
    print("error: x = 2: no such thing"); sys.exit(2)
(folder / ".hydra").mkdir(exist_ok=True)
(folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {k}={v}\\n" for k, v in given.items()))
said = {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS"), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
(folder / "said.json").write_text(json.dumps(said))
record = {"metrics": {"m": float(given["x"])}, "selected": {"metric": "m"}}
(folder / "metrics.json").write_text(json.dumps(record))
"""


class Composed(dict):  # type: ignore[type-arg]
    """Hydra's composed configuration, as far as a sweep looks at it."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def node(**values: Any) -> Composed:
    return Composed(values)


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """launch(x values, resume, n_jobs, devices) on the small script; returns the job returns."""
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py")])
    monkeypatch.setattr(sweep, "check_sources", lambda composed: None)
    monkeypatch.setattr(
        sweep, "_point", lambda number, overrides: sweep.Point(number, tmp_path / "s" / f"p{number}", list(overrides))
    )
    monkeypatch.setattr(sweep, "_compose", lambda context, config, overrides, number: number)

    def launch(values: list[int], resume: bool = False, n_jobs: int = 1, devices: list[int] | None = None) -> list[Any]:
        hydra = node(sweep=node(dir=str(tmp_path / "s")), overrides=node(hydra=["hydra.sweep.dir=x"]))
        config = node(hydra=hydra, sweep=node(resume=resume))
        return sweep.launch(None, config, [[f"x={value}"] for value in values], 0, n_jobs, devices or [])

    return launch


def said(folder: Path) -> Any:
    return json.loads((folder / "said.json").read_text())


def test_every_point_is_a_process_of_its_own(launched: Any, tmp_path: Path) -> None:
    found = launched([1, 3, 4])
    assert [one.return_value for one in found] == [1.0, 3.0, 4.0]
    pids = {said(tmp_path / "s" / f"p{index}")["pid"] for index in range(3)}
    assert len(pids | {os.getpid()}) == 4


def test_a_failure_is_recorded_and_the_rest_goes_on(
    launched: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = launched([1, 2, 3])
    assert (found[0].return_value, found[2].return_value) == (1.0, 3.0)
    with pytest.raises(
        UserError, match=r"1 of 3 runs failed, the first being #1: x = 2: no such thing.*\n.*\n.*resume=true"
    ):
        _ = found[1].return_value
    assert "exit code 2" in (tmp_path / "s" / "p1" / "error.txt").read_text()
    report_main([str(tmp_path / "s"), "--status"])
    assert capsys.readouterr().out.splitlines()[-1].endswith("s: 2 done, 0 running, 1 failed, 0 missing")


def test_resumed_it_runs_what_is_missing_or_failed(launched: Any, tmp_path: Path) -> None:
    launched([1, 2, 3])
    before = [said(tmp_path / "s" / f"p{index}")["pid"] for index in (0, 2)]
    launched([1, 4, 3], resume=True)
    after = [said(tmp_path / "s" / f"p{index}")["pid"] for index in (0, 1, 2)]
    assert (after[0], after[2]) == tuple(before)
    assert [point.status() for point in read_sweep(tmp_path / "s")] == ["done"] * 3
    launched([5, 4, 3], resume=True)  # other overrides: that one is not finished
    assert said(tmp_path / "s" / "p0")["pid"] != before[0]
    assert said(tmp_path / "s" / "p2")["pid"] == before[1]


def test_interrupted_it_starts_no_other_point(launched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def interrupted(point: sweep.Point, *rest: Any) -> None:
        started.append(point.number)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)

    monkeypatch.setattr(sweep, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launched([1, 3, 4])
    assert started == [0]
    assert [point.status() for point in read_sweep(tmp_path / "s")] == ["missing"] * 3


def test_a_point_never_sweeps(launched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sweep.POINT, "1")
    with pytest.raises(UserError, match="would start a sweep of its own"):
        launched([1])


def test_side_by_side_they_share_threads_and_devices(launched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launched([1, 3, 4, 5], n_jobs=2, devices=[6, 7])
    found = [said(tmp_path / "s" / f"p{index}") for index in range(4)]
    assert {one["threads"] for one in found} == {str(max(1, (os.cpu_count() or 1) // 2))}
    assert {one["gpu"] for one in found} <= {"6", "7"}


def test_a_sweep_killed_in_the_middle_is_carried_on(tmp_path: Path) -> None:
    """The real command on a tiny model: SIGKILL during the second run, then the same again with sweep.resume=true."""
    write_model(tmp_path / "models" / "m", tiny_roberta())
    rows = {"sentence": ["a cat sat", "the dog ran"] * 8, "label": [0, 1] * 8}
    write_dataset(tmp_path / "datasets/nyu-mll/glue", "cola", {"train": rows, "validation": rows})
    folder = tmp_path / "sweep"
    command = [sys.executable, str(REPOSITORY / "train.py"), "-m", "dem.eta=0,0.1", "model.path=m", "trainer.epochs=2",
               f"hub.root={tmp_path}", "logger=none", f"hydra.sweep.dir={folder}"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not list(folder.glob("1_*/running.json")):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    states = [point.status() for point in read_sweep(folder)]
    assert states[0] == "done"
    assert states[1] != "done"
    first = next(folder.glob("0_*/metrics.json"))
    stamp = first.stat().st_mtime_ns
    done = subprocess.run([*command, "sweep.resume=true"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert first.stat().st_mtime_ns == stamp
    assert [point.status() for point in read_sweep(folder)] == ["done", "done"]
