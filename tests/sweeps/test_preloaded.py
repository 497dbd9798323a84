"""Commands in forks of the preloaded server: they end, print and see what any process does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from sweep_folders import launcher, seen_by_run

from dynarank.sweeps import executors, preloaded, sweep
from dynarank.sweeps.executors import Processes
from dynarank.sweeps.preloaded import Process, start_forked, start_server

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the server is for Linux"
)
SCRIPT = """
import atexit, json, multiprocessing, os, signal, sys, time
atexit.register(lambda: print("said at the end"))
print(json.dumps({
    "argv": sys.argv, "folder": os.getcwd(), "name": __name__, "pid": os.getpid(),
    "variable": os.environ.get("OWN"), "path": os.environ.get("PATH"),
    "starts": multiprocessing.get_start_method(),
}), flush=True)
print("to stderr", file=sys.stderr)
what = sys.argv[1]
if what == "exit": sys.exit(7)
if what == "raise": raise RuntimeError("on purpose")
if what == "sleep": time.sleep(60)
if what == "tidy":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def small_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that has imported next to nothing, and that ends with the test."""
    monkeypatch.setattr(preloaded, "PRELOADED", ["dynarank.errors"])
    monkeypatch.setattr(preloaded, "GPU_DRIVERS", ())
    monkeypatch.setattr(preloaded, "_server_environment", {})
    server = forkserver._forkserver
    server._stop()
    before = server._preload_modules
    yield
    server._stop()
    server.set_forkserver_preload(before)


def started(tmp_path: Path, *words: str, **variables: str) -> Process:
    """Start the script in a fork, in a folder of its own."""
    script, folder = tmp_path / "script.py", tmp_path / "at work"
    script.write_text(SCRIPT)
    folder.mkdir()
    (tmp_path / "out.txt").write_bytes(b"")
    assert start_server(os.environ)
    environment: Mapping[str, str] = {**os.environ, **variables}
    command = [sys.executable, str(script), *words]
    process = start_forked(command, tmp_path / "out.txt", folder, environment)
    assert process is not None
    return process


def printed(tmp_path: Path) -> str:
    return (tmp_path / "out.txt").read_text()


def test_it_sees_its_arguments_folder_and_variables(tmp_path: Path) -> None:
    process = started(tmp_path, "a", "b c", OWN="x")
    assert process.wait(60) == process.poll() == 0
    first, *rest = printed(tmp_path).splitlines()
    seen = json.loads(first)
    assert seen["argv"] == [str(tmp_path / "script.py"), "a", "b c"]
    assert seen["folder"] == str(tmp_path / "at work")
    assert seen["name"] == "__main__"
    assert seen["variable"] == "x"
    assert seen["path"] == os.environ["PATH"]
    assert seen["pid"] == process.pid != os.getpid()
    # As a process of its own would start others: a server's workers outlive a run that is killed.
    default = "import multiprocessing; print(multiprocessing.get_start_method())"
    plain = subprocess.run([sys.executable, "-c", default], capture_output=True, text=True)
    assert seen["starts"] == plain.stdout.strip()
    assert rest[-1] == "said at the end"
    assert "to stderr" in rest


@pytest.mark.parametrize(("what", "code"), [("exit", 7), ("raise", 1)])
def test_its_exit_code_is_the_commands(tmp_path: Path, what: str, code: int) -> None:
    assert started(tmp_path, what).wait(60) == code
    assert ("on purpose" in printed(tmp_path)) == (what == "raise")
    assert "said at the end" in printed(tmp_path)


def test_a_wait_may_time_out_and_a_killed_one_has_the_signal_as_its_code(tmp_path: Path) -> None:
    process = started(tmp_path, "sleep")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    process.send_signal(signal.SIGKILL)  # of nobody


def test_it_can_handle_sigterm_itself(tmp_path: Path) -> None:
    process = started(tmp_path, "tidy")
    while "ready" not in printed(tmp_path):
        time.sleep(0.01)
    process.terminate()
    assert process.wait(60) == 5


def test_a_module_runs_as_with_m(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_bytes(b"")
    assert start_server(os.environ)
    command = [sys.executable, "-m", "dynarank", "--version"]
    process = start_forked(command, tmp_path / "out.txt", tmp_path, os.environ)
    assert process is not None
    assert process.wait(60) == 0
    expected = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed(tmp_path) == expected


def test_what_would_not_be_the_same_in_a_fork_starts_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "script.py"]
    assert not preloaded.can_fork(command, os.environ)  # no server
    assert start_server(os.environ)
    assert preloaded.can_fork(command, os.environ)
    assert preloaded.can_fork(command, {**os.environ, "WANDB_TAGS": "x"})
    assert not preloaded.can_fork(command, {**os.environ, "HF_HOME": "/elsewhere"})
    assert not preloaded.can_fork(["bash", "script.py"], os.environ)
    assert not preloaded.can_fork([*command, "hydra.job.env_set.HF_HOME=x"], os.environ)
    monkeypatch.setattr(preloaded, "GPU_DRIVERS", ("/dev/null",))
    assert not start_server(os.environ)


def test_the_server_gets_the_runs_variables_and_this_process_keeps_its_own(tmp_path: Path) -> None:
    before = dict(os.environ)
    assert start_server({**os.environ, "OMP_NUM_THREADS": "7", "OWN": "x"})
    assert dict(os.environ) == before
    assert not preloaded.can_fork([sys.executable, "a"], {**os.environ, "OMP_NUM_THREADS": "6"})


def test_all_runs_of_a_sweep_are_forks_of_one_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = Processes(n_jobs=2)
    launch = launcher(tmp_path, monkeypatch)
    results = launch([1, 2, 3, 4, 5], executor=executor)
    folders = [tmp_path / "s" / f"p{number}" for number in (0, 2, 3, 4)]
    parents = {seen_by_run(folder)["parent"] for folder in folders}
    assert len(parents) == 1
    assert os.getpid() not in parents
    assert len({seen_by_run(folder)["pid"] for folder in folders}) == 4
    assert [result.return_value for result in results[2:]] == [3.0, 4.0, 5.0]
    with pytest.raises(Exception, match="x = 2: no such thing"):
        _ = results[1].return_value
    assert not list((tmp_path / "s").glob("*/running.json"))


def test_the_imports_begin_before_the_points_are_composed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    compose = sweep._compose_points

    def record(*arguments: Any) -> Any:
        order.append("composed")
        return compose(*arguments)

    monkeypatch.setattr(executors, "start_server", lambda _: order.append("started") or False)
    launch = launcher(tmp_path, monkeypatch)
    monkeypatch.setattr(sweep, "_compose_points", record)
    launch([1, 3], executor=Processes(n_jobs=2))
    assert order == ["started", "composed"]
    # Where no server can be had, each run is a process that this one starts.
    assert seen_by_run(tmp_path / "s" / "p0")["parent"] == os.getpid()


def test_a_server_that_is_gone_is_no_trouble(tmp_path: Path) -> None:
    assert start_server(os.environ)
    started(tmp_path, "a").wait(60)
    forkserver._forkserver._stop()
    forkserver._forkserver._forkserver_address = str(tmp_path / "nothing")
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
    try:
        command = [sys.executable, "script.py"]
        assert start_forked(command, tmp_path / "out.txt", tmp_path, os.environ) is None
    finally:
        del forkserver._forkserver.ensure_running
