"""The same points elsewhere.

Jobs of submitit are really run, by its local executor. What Slurm would be told is looked at. Tasks
of Ray are run where Ray is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import hydra
import pytest
from sweep_folders import launcher, seen_by_run
from tiny import CONF

from dynarank.config.schema import register_schemas
from dynarank.errors import UserError
from dynarank.sweeps.executors import Processes, RayTasks
from dynarank.sweeps.submitit_jobs import Submitit
from dynarank.sweeps.sweep import read_sweep

if importlib.util.find_spec("submitit") is None:
    pytest.skip("submitit is not installed (the extra slurm)", allow_module_level=True)

NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (the extra ray)"
)


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return launcher(tmp_path, monkeypatch)


def local(**changes: Any) -> Submitit:
    parameters = {"timeout_min": 5, "gpus_per_node": 0, "signal_delay_s": 10, **changes}
    return Submitit("local", parameters, n_jobs=2, max_num_timeout=2)


LOCAL_TOLD = {"timeout_min": 9, "gpus_per_node": 0, "signal_delay_s": 120, "setup": ["date"]}
SLURM_TOLD = {
    "partition": "gpu",
    "timeout_min": 1440,
    "signal_delay_s": 120,
    "nodes": 1,
    "tasks_per_node": 1,
    "cpus_per_task": 4,
    "array_parallelism": 256,
    "additional_parameters": {"qos": "high"},
}


@pytest.mark.parametrize(
    ("overrides", "executor"),
    [
        (["n_jobs=2", "devices=[0,1]"], Processes(2, [0, 1])),
        (["n_jobs=2", "timeout_min=9", "setup=[date]"], Submitit("local", LOCAL_TOLD, 2, 20)),
        (
            ["cpus_per_task=4", "additional_parameters.qos=high", "partition=gpu"],
            Submitit("slurm", SLURM_TOLD, None, 20, {"OMP_NUM_THREADS": "4"}),
        ),
        (["num_gpus=0.5"], RayTasks(None, 1, 0.5)),
    ],
    ids=["fresh", "submitit_local", "submitit_slurm", "ray"],
)
def test_hydra_makes_each_launcher(
    overrides: list[str], executor: Any, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    settings = [f"++hydra.launcher.{one}" for one in overrides]
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra.compose(
            "train", [f"hydra/launcher={name}", *settings], return_hydra_config=True
        )
    launcher = hydra.utils.instantiate(composed.hydra.launcher)
    assert launcher.executor == executor


def test_submitit_runs_the_plain_command_in_jobs(
    launched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynarank.sweeps.submitit_jobs.POLL", 0.1)
    found = launched([1, 2, 3], executor=local())
    assert (found[0].return_value, found[2].return_value) == (1.0, 3.0)
    assert "exit code 2\n" in (tmp_path / "s" / "p1" / "error.txt").read_text()
    with pytest.raises(
        UserError, match="1 of 3 runs failed, the first being #1: x = 2: no such thing"
    ):
        _ = found[1].return_value
    assert seen_by_run(tmp_path / "s" / "p0")["parent"] != os.getpid()
    assert seen_by_run(tmp_path / "s" / "p0")["WANDB_RUN_GROUP"] == "s"
    before = seen_by_run(tmp_path / "s" / "p0")["pid"]
    launched([1, 4, 3], resume=True, executor=local())
    assert [point.status() for point in read_sweep(tmp_path / "s")] == ["done"] * 3
    assert seen_by_run(tmp_path / "s" / "p0")["pid"] == before


def test_a_job_that_is_told_to_go_saves_and_goes_on(
    launched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit's signal comes as before a time limit: the run saves and ends, and is resumed."""
    import submitit

    monkeypatch.setattr("dynarank.sweeps.submitit_jobs.POLL", 0.1)
    folder = tmp_path / "s" / "p0"

    def preempt() -> None:
        while not (folder / "ready").is_file():
            time.sleep(0.05)
        run = json.loads((folder / "running.json").read_text())["pid"]
        parent = int(Path(f"/proc/{run}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(
            run, submitit.JobEnvironment._usr_sig()
        )  # as Slurm does, to every process of the job
        os.kill(parent, submitit.JobEnvironment._usr_sig())

    thread = threading.Thread(target=preempt, daemon=True)
    thread.start()
    assert launched([0], executor=local())[0].return_value == 0.0
    assert (folder / "saved").is_file()
    assert seen_by_run(folder)["resume"] == "auto"
    assert not (folder / "error.txt").exists()


def test_a_job_that_is_killed_is_recorded(
    launched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from submitit import LocalJob

    monkeypatch.setattr("dynarank.sweeps.submitit_jobs.POLL", 0.1)
    monkeypatch.setattr(LocalJob, "_results_timeout_s", 0)
    folder = tmp_path / "s" / "p0"

    def kill() -> None:
        while not (folder / "ready").is_file():
            time.sleep(0.05)
        run = json.loads((folder / "running.json").read_text())["pid"]
        parent = int(Path(f"/proc/{run}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        os.kill(run, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(
        UserError, match=r"first being #0: job \d+ ended without a result, state FINISHED"
    ):
        _ = launched([0], executor=local())[0].return_value
    assert [point.status() for point in read_sweep(tmp_path / "s")] == ["failed"]


def test_slurm_is_told_what_the_launcher_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for sbatch keeps what it is given: one array, the resources, a process a task."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (
        ("sbatch", f"cp $1 {tmp_path}/batch.sh; echo Submitted batch job 7"),
        ("srun", ""),
        ("sacct", ""),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    parameters = {
        "partition": "gpu",
        "timeout_min": 90,
        "signal_delay_s": 60,
        "gpus_per_node": 2,
        "tasks_per_node": 2,
        "array_parallelism": 3,
        "setup": ["module load cuda"],
        "additional_parameters": {"qos": "high"},
    }
    slurm = Submitit("slurm", parameters)
    slurm.check()
    executor = slurm._executor(tmp_path / "jobs" / "%j")
    jobs = executor.map_array(len, ["a", "b", "c", "d"])
    assert [job.job_id for job in jobs] == ["7_0", "7_1", "7_2", "7_3"]
    lines = (tmp_path / "batch.sh").read_text().splitlines()
    for option in (
        "--partition=gpu",
        "--time=90",
        "--gpus-per-node=2",
        "--ntasks-per-node=2",
        "--array=0-3%3",
        "--qos=high",
        "--signal=USR2@60",
    ):
        assert f"#SBATCH {option}" in lines
    assert "module load cuda" in lines
    with pytest.raises(UserError, match=r"submitit does not take that: .*partitoin"):
        Submitit("slurm", {"partitoin": "gpu"})._executor(tmp_path)


def test_jobs_that_are_still_queued_are_not_submitted_again(
    launched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    report = 'printf "JobID|State|NodeList\\n7_0|PENDING|\\n"'
    for name, text in (("sbatch", "exit 1"), ("srun", ""), ("sacct", report)):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    (tmp_path / "s" / "p0").mkdir(parents=True)
    (tmp_path / "s" / "p0" / "submitit.json").write_text(
        json.dumps({"cluster": "slurm", "id": "7_0"})
    )
    with pytest.raises(UserError, match="still in the queue or at work: 7_0"):
        launched([1], resume=True, executor=Submitit("slurm", {}))


def test_what_sbatch_refuses_is_an_error(
    launched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("sbatch", "echo invalid partition >&2; exit 1"), ("srun", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"hydra\.launcher: invalid partition"):
        launched([1, 3], executor=Submitit("slurm", {}))


def test_where_something_is_missing_it_says_what(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no Slurm on this machine"):
        Submitit("slurm", {}).check()
    with pytest.raises(UserError, match=r"n_jobs = 0: must be at least 1"):
        Submitit("local", {}, n_jobs=0).check()
    for name, executor in (("submitit", Submitit("local", {})), ("ray", RayTasks())):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=r"pip install 'dynarank\[(slurm|ray)\]'"):
            executor.check()


@NEEDS_RAY
def test_ray_runs_the_plain_command_in_tasks(tmp_path: Path) -> None:
    """In a process of its own, for a local Ray is a dozen processes that must go again."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import pytest
from pathlib import Path
from sweep_folders import launcher
from dynarank.sweeps.executors import RayTasks
with pytest.MonkeyPatch.context() as patch:
    found = launcher(Path({str(tmp_path)!r}), patch)([1, 2, 3], executor=RayTasks(num_cpus=1))
print([one.status.name for one in found])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "['COMPLETED', 'FAILED', 'COMPLETED']", (
        done.stdout + done.stderr
    )
    assert "x = 2: no such thing" in (tmp_path / "s" / "p1" / "error.txt").read_text()
    with pytest.raises(UserError, match="num_gpus = -1"):
        RayTasks(num_gpus=-1).check()


def test_submitit_still_tells_a_job_by_the_signal_that_is_ignored() -> None:
    """By the signal that it asks Slurm for (`--signal=USR2@60`)."""
    from dynarank.sweeps.submitit_jobs import _preemption_signal

    assert _preemption_signal() is signal.SIGUSR2
