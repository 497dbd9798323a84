"""Sweeps: a process a point, failures recorded, finished runs kept.

Points are runs of a small script, or real tiny runs.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from killing import forked_command
from sweep_folders import launcher, seen_by_run
from tiny import REPOSITORY, configure, tiny_roberta, write_dataset, write_model

from dynarank.commands.report import main as report_main
from dynarank.errors import UserError
from dynarank.runs.run import run
from dynarank.sweeps import sweep
from dynarank.sweeps.executors import Processes
from dynarank.sweeps.naming import resume_hint, tracker_environment
from dynarank.sweeps.point import Job, Point
from dynarank.sweeps.sweep import read_sweep


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return launcher(tmp_path, monkeypatch)


def test_every_point_is_a_process_of_its_own(launched: Any, tmp_path: Path) -> None:
    found = launched([1, 3, 4])
    assert [one.return_value for one in found] == [1.0, 3.0, 4.0]
    pids = {seen_by_run(tmp_path / "s" / f"p{index}")["pid"] for index in range(3)}
    assert len(pids | {os.getpid()}) == 4


def test_a_failure_is_recorded_and_the_rest_goes_on(
    launched: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = launched([1, 2, 3])
    assert (found[0].return_value, found[2].return_value) == (1.0, 3.0)
    with pytest.raises(
        UserError,
        match=r"1 of 3 runs failed, the first being #1: x = 2: no such thing.*\n.*\n.*resume=true",
    ):
        _ = found[1].return_value
    assert "exit code 2" in (tmp_path / "s" / "p1" / "error.txt").read_text()
    report_main([str(tmp_path / "s"), "--status"])
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .endswith("s: 2 done, 0 running, 1 failed, 0 missing")
    )


def test_resumed_it_runs_what_is_missing_or_failed(launched: Any, tmp_path: Path) -> None:
    launched([1, 2, 3])
    before = [seen_by_run(tmp_path / "s" / f"p{index}")["pid"] for index in (0, 2)]
    launched([1, 4, 3], resume=True)
    after = [seen_by_run(tmp_path / "s" / f"p{index}")["pid"] for index in (0, 1, 2)]
    assert (after[0], after[2]) == tuple(before)
    assert [point.status() for point in read_sweep(tmp_path / "s")] == ["done"] * 3


@pytest.mark.parametrize("resume", [False, True])
def test_finished_runs_of_other_settings_are_not_replaced(
    launched: Any, tmp_path: Path, resume: bool
) -> None:
    launched([1, 3])
    before = seen_by_run(tmp_path / "s" / "p0")["pid"]
    with pytest.raises(UserError, match=r"2 of these runs would replace finished ones of other"):
        launched([5, 6], resume=resume)
    assert seen_by_run(tmp_path / "s" / "p0")["pid"] == before


def test_resumed_a_run_goes_on_where_it_was_begun(launched: Any, tmp_path: Path) -> None:
    launched([1, 3])
    assert seen_by_run(tmp_path / "s" / "p0")["resume"] == "never"
    for name in ("p0", "p1"):
        (tmp_path / "s" / name / "metrics.json").unlink()
    launched([1, 4], resume=True)
    assert seen_by_run(tmp_path / "s" / "p0")["resume"] == "auto"
    assert (
        seen_by_run(tmp_path / "s" / "p1")["resume"] == "never"
    )  # its folder holds a run of other overrides


def test_finished_runs_are_not_replaced_unasked(launched: Any, tmp_path: Path) -> None:
    launched([1, 3])
    before = seen_by_run(tmp_path / "s" / "p0")["pid"]
    with pytest.raises(UserError, match=r"2 of these 2 runs are finished .*sweep\.resume=true"):
        launched([1, 3])
    assert seen_by_run(tmp_path / "s" / "p0")["pid"] == before


def test_interrupted_it_starts_no_other_point(
    launched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def interrupted(job: Job, *rest: Any, **named: Any) -> None:
        started.append(job.point.number)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)

    monkeypatch.setattr(Job, "run", interrupted)
    # A shell lets its background jobs ignore Ctrl-C, and the tests may be one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match=r"Go on: .* with sweep\.resume=true"):
            launched([1, 3, 4])
    finally:
        signal.signal(signal.SIGINT, before)
    assert started == [0]
    assert [point.status() for point in read_sweep(tmp_path / "s")] == ["missing"] * 3


def test_runs_that_would_share_a_folder_are_refused(
    launched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_folder(number: int, overrides: list[str]) -> Point:
        return Point(number, tmp_path / "s" / "same", overrides)

    monkeypatch.setattr(sweep, "_point", one_folder)
    with pytest.raises(UserError, match=r"subdir: runs #0 and #1 would have the folder .*/same"):
        launched([1, 3])
    assert not (tmp_path / "s").exists()


def test_the_way_to_go_on_is_quoted_for_hydra_and_for_the_shell() -> None:
    words = shlex.split(resume_hint(Path("out/a sweep=1")))
    assert words[-1] == "hydra.sweep.dir='out/a sweep=1'"
    assert resume_hint(Path("out/s")).endswith(" sweep.resume=true hydra.sweep.dir=out/s")


def test_a_point_never_sweeps(launched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sweep.POINT, "1")
    with pytest.raises(UserError, match="would start a sweep of its own"):
        launched([1])


def test_what_is_at_work_is_not_started_twice(launched: Any, tmp_path: Path) -> None:
    launched([1, 3])
    record = tmp_path / "s" / "p1" / "running.json"
    (tmp_path / "s" / "p1" / "metrics.json").unlink()
    record.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    with pytest.raises(UserError, match=r"1 of these runs are at work still, the first being #1"):
        launched([1, 3], resume=True)
    record.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    assert read_sweep(tmp_path / "s")[1].status() == "running"  # its heartbeat is fresh
    os.utime(record, (time.time() - 3600,) * 2)
    assert read_sweep(tmp_path / "s")[1].status() == "missing"  # its machine is gone
    assert launched([1, 3], resume=True)[1].return_value == 3.0


def test_a_process_number_that_was_given_away_is_no_live_run(launched: Any, tmp_path: Path) -> None:
    launched([1])
    (tmp_path / "s" / "p0" / "metrics.json").unlink()
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        known = {"pid": sleeper.pid, "host": socket.gethostname(), "started": 1}
        (tmp_path / "s" / "p0" / "running.json").write_text(json.dumps(known))
        assert read_sweep(tmp_path / "s")[0].status() == "missing"
    finally:
        sleeper.kill()
        sleeper.wait()
    assert launched([1], resume=True)[0].return_value == 1.0


SWEEP = """
import sys
from pathlib import Path
import pytest
from sweep_folders import launcher
from dynarank.sweeps.executors import Processes
with pytest.MonkeyPatch.context() as patch:
    try:
        launcher(Path(sys.argv[1]), patch)([0, 3], executor=Processes(preload=False))
    except KeyboardInterrupt as error:
        print(error, error.code)
"""


def test_sigterm_reaches_the_runs_and_leaves_no_orphan(tmp_path: Path) -> None:
    """The run at work is told to end, its process is gone, and no other one is started."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=variables,
    )
    folder = tmp_path / "s" / "p0"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (folder / "ready").is_file():
        time.sleep(0.05)
    run_process = json.loads((folder / "running.json").read_text())["pid"]
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert "Go on: the same command with sweep.resume=true" in output
    assert output.strip().endswith(" 143")
    with pytest.raises(ProcessLookupError):
        os.kill(run_process, 0)
    assert "exit code" in (folder / "error.txt").read_text()
    assert not (tmp_path / "s" / "p1").exists()


def test_a_sweep_tells_how_far_it_is_and_ends_with_its_table(
    launched: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="dynarank"):
        launched([1, 2, 3])
    lines = caplog.text.splitlines()
    assert sum("#0 starts: x=1" in line for line in lines) == 1
    assert any("#0 m 1.0000  x=1  (1 of 3 done, 0 running, 0 failed" in line for line in lines)
    assert any("#1 failed: x = 2: no such thing  x=2  (1 of 3 done" in line for line in lines)
    table = caplog.text[caplog.text.rindex("2 of 3 done, 0 running, 1 failed\n") :]
    assert "  #2  m 3.0000  x=3\n" in table
    assert f"dynarank report {tmp_path / 's'}" in table


def test_a_sweep_over_seeds_sets_no_empty_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B refuses one, and the whole run with it."""
    monkeypatch.delenv("WANDB_TAGS", raising=False)
    assert "WANDB_TAGS" not in tracker_environment("s", None, ["seed=1"])
    assert tracker_environment("s", None, ["seed=1", "x=2"])["WANDB_TAGS"] == "x=2"


def test_the_runs_of_a_sweep_share_a_group_and_tags(
    launched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_TAGS", "mine")
    launched([1, 3])
    found = [seen_by_run(tmp_path / "s" / f"p{index}") for index in range(2)]
    assert {one["WANDB_RUN_GROUP"] for one in found} == {"s"}
    assert [one["WANDB_TAGS"] for one in found] == ["mine,x=1", "mine,x=3"]
    assert [one["WANDB_NAME"] for one in found] == ["table5_dem x=1", "table5_dem x=3"]
    monkeypatch.setenv("WANDB_RUN_GROUP", "ours")
    (tmp_path / "s" / "p0" / "metrics.json").unlink()  # or it would be finished, and refused
    launched([1])
    assert seen_by_run(tmp_path / "s" / "p0")["WANDB_RUN_GROUP"] == "ours"


def test_side_by_side_they_share_threads_and_devices(
    launched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launched([1, 3, 4, 5], executor=Processes(n_jobs=2, devices=[6, 7]))
    found = [seen_by_run(tmp_path / "s" / f"p{index}") for index in range(4)]
    assert {one["OMP_NUM_THREADS"] for one in found} == {str(max(1, (os.cpu_count() or 1) // 2))}
    assert {one["CUDA_VISIBLE_DEVICES"] for one in found} <= {"6", "7"}


def test_a_sweep_killed_in_the_middle_is_carried_on(tmp_path: Path) -> None:
    """The real command on a tiny model: SIGKILL in the second run, then sweep.resume=true.

    The first is a process of its own, with a server of its own.
    """
    write_model(tmp_path / "models" / "m", tiny_roberta())
    rows = {"sentence": ["a cat sat", "the dog ran"] * 8, "label": [0, 1] * 8}
    write_dataset(tmp_path / "datasets/nyu-mll/glue", "cola", {"train": rows, "validation": rows})
    folder = tmp_path / "sweep"
    command = [
        str(REPOSITORY / "train.py"),
        "-m",
        "dem.eta=0,0.1",
        "model.path=m",
        "trainer.epochs=2",
        f"hub.root={tmp_path}",
        "logger=none",
        f"hydra.sweep.dir={folder}",
    ]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not list(folder.glob("1_*/running.json")):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    states = [point.status() for point in read_sweep(folder)]
    assert states[0] == "done"
    assert states[1] != "done"
    # Folders are named by what varies alone; one of an older version's name is taken up too.
    assert [point.folder.name for point in read_sweep(folder)] == ["0_dem.eta-0", "1_dem.eta-0.1"]
    (folder / "0_dem.eta-0").rename(folder / "0_dem.eta=0,logger=none")
    record = folder / "sweep.json"
    record.write_text(record.read_text().replace('0_dem.eta-0"', '0_dem.eta=0,logger=none"'))
    first = next(folder.glob("0_*/metrics.json"))
    stamp = first.stat().st_mtime_ns
    done = forked_command([*command, "sweep.resume=true"], tmp_path, dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    assert first.stat().st_mtime_ns == stamp
    assert [point.status() for point in read_sweep(folder)] == ["done", "done"]


def test_the_tracker_gets_group_and_tags_and_the_report(
    hub_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Offline, from a point's environment to what W&B keeps; the report joins the group."""
    monkeypatch.setenv("WANDB_RUN_GROUP", "table5_dem")
    monkeypatch.setenv("WANDB_TAGS", "mine,dem.eta=0.1")
    monkeypatch.setenv("WANDB_NAME", "dem.eta=0.1 seed=2")
    run(
        configure(tmp_path / "s" / "0", hub_root, "logger=wandb", "method=head", "trainer.epochs=1")
    )
    kept = wandb_run(tmp_path / "s" / "0")
    assert (kept.run_group, list(kept.tags)) == ("table5_dem", ["mine", "dem.eta=0.1"])
    assert kept.display_name == "dem.eta=0.1 seed=2"
    (tmp_path / "s" / "0" / ".hydra").mkdir()
    (tmp_path / "s" / "0" / ".hydra" / "config.yaml").write_text(
        "logger: {project: mine, mode: offline}\nseed: 1\n"
    )
    report_main([str(tmp_path / "s"), "--wandb"])
    assert "logged to W&B: " in capsys.readouterr().out
    logged = wandb_run(tmp_path / "s" / "report")
    assert (logged.run_group, logged.project, logged.job_type) == ("table5_dem", "mine", "report")
    assert list((tmp_path / "s" / "report").glob("wandb/offline-run-*/files/media/table/*.json"))


def wandb_run(folder: Path) -> Any:
    """Return the record of its run that W&B keeps offline.

    It stands among protobuf messages, which are in pieces with a header, in blocks of 32 KiB.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    deadline = time.monotonic() + 60
    while (
        not (content := next(folder.glob("wandb/offline-run-*/*.wandb")).read_bytes())[7:]
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)  # its service writes in a process of its own
    place, message = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no header fits in the rest of a block
            place += 32768 - place % 32768
        length, piece = struct.unpack_from("<HB", content, place + 4)
        message += content[place + 7 : place + 7 + length]
        place += 7 + length
        if piece in (1, 4):  # whole, or the last
            record = Record.FromString(message)
            if record.WhichOneof("record_type") == "run":
                return record.run
            message = b""
    raise AssertionError(f"no run in {folder}")
