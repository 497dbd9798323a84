"""`hydra/sweeper=tune`: what it searches, how it resumes, and runs that have no score."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from killing import begin_command, forked_command
from tiny import REPOSITORY

from dynarank.commands.report import main as report_main
from dynarank.errors import UserError
from dynarank.sweeps import search_space, tuning
from dynarank.sweeps.search_space import parse_space
from dynarank.sweeps.sweep import read_sweep

optuna = pytest.importorskip("optuna", reason="Optuna is not installed (the extra tune)")
from hydra.core.utils import JobReturn, JobStatus  # noqa: E402

RATE = "optimizer.lr=interval(1e-5,1e-2)"


class Launcher:
    """Scores overrides by a function, and remembers what it was asked for."""

    def __init__(
        self, score: Callable[[dict[str, str]], float | None], stop_at: int = 10**6
    ) -> None:
        self.score, self.stop_at = score, stop_at
        self.numbers: list[int] = []
        self.batches: list[int] = []
        self.tried: list[dict[str, str]] = []

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int, resume: bool
    ) -> list[Any]:
        assert resume
        self.batches.append(len(job_overrides))
        found = []
        for index, overrides in enumerate(job_overrides):
            if len(self.tried) == self.stop_at:
                raise KeyboardInterrupt
            settings = dict(one.split("=", 1) for one in overrides)
            self.numbers.append(initial_job_idx + index)
            self.tried.append(settings)
            score = self.score(settings)
            one = JobReturn(status=JobStatus.FAILED if score is None else JobStatus.COMPLETED)
            one.return_value = UserError("failed") if score is None else score
            found.append(one)
        return found


def near_a_thousandth(settings: dict[str, str]) -> float:
    return -abs(math.log10(float(settings["optimizer.lr"])) + 3)


@pytest.fixture
def tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(tuning.Tuning, "check_values", lambda self: None)

    def run(
        launcher: Launcher,
        arguments: list[str],
        trials: int = 12,
        jobs: int = 1,
        resume: bool = False,
    ) -> None:
        config = SimpleNamespace(
            hydra=SimpleNamespace(sweep=SimpleNamespace(dir=str(tmp_path / "t"))),
            sweep=SimpleNamespace(resume=resume),
        )
        tuning.Tuning(parse_space(arguments), None, config, launcher).run(trials, jobs, 4, 1)

    return run


def best(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "t" / "best.json").read_text())


def test_it_finds_the_best_rate(tune: Any, tmp_path: Path) -> None:
    launcher = Launcher(near_a_thousandth)
    tune(launcher, ["task=cola", "experiment=tune", RATE], trials=25)
    assert len(launcher.tried) == 25
    found = best(tmp_path)
    assert found["score"] == max(near_a_thousandth(one) for one in launcher.tried)
    assert found["score"] > -0.1
    assert found["command"].endswith(f"task=cola optimizer.lr={found['settings']['optimizer.lr']}")
    # On a logarithmic scale: each of the three decades gets its share of the random start.
    assert sum(float(one["optimizer.lr"]) < 1e-3 for one in launcher.tried[:4]) >= 2


def test_the_same_seed_tries_the_same(tune: Any, tmp_path: Path) -> None:
    first, second = Launcher(near_a_thousandth), Launcher(near_a_thousandth)
    tune(first, [RATE])
    (tmp_path / "t" / "study.journal").unlink()
    tune(second, [RATE])
    assert first.tried == second.tried


def test_stopped_it_goes_on_as_if_it_had_not_been(
    tune: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Launcher(near_a_thousandth)
    tune(whole, [RATE, "budget.init=3,4,6"])
    (tmp_path / "t" / "study.journal").unlink()
    stopped, resumed = Launcher(near_a_thousandth, stop_at=5), Launcher(near_a_thousandth)
    with pytest.raises(
        KeyboardInterrupt,
        match=r"5 of 12 trials have a score. Go on: the same .* with sweep.resume=true",
    ):
        tune(stopped, [RATE, "budget.init=3,4,6"])
    tune(resumed, [RATE, "budget.init=3,4,6"], resume=True)
    assert stopped.tried + resumed.tried == whole.tried
    assert stopped.numbers + resumed.numbers == list(range(12))


def test_a_search_is_not_mixed_with_another(tune: Any) -> None:
    tune(Launcher(near_a_thousandth), ["task=cola", RATE], trials=2)
    with pytest.raises(UserError, match="holds a search already"):
        tune(Launcher(near_a_thousandth), ["task=cola", RATE], trials=2)
    with pytest.raises(
        UserError, match=r"its search was another: fixed was \['task=cola'\], is \['task=sst2'\]"
    ):
        tune(Launcher(near_a_thousandth), ["task=sst2", RATE], trials=4, resume=True)
    more = Launcher(near_a_thousandth)
    tune(more, ["task=cola", "sweep.resume=true", RATE], trials=4, resume=True)
    assert len(more.tried) == 2


def test_each_trial_is_averaged_over_seeds(tune: Any, tmp_path: Path) -> None:
    launcher = Launcher(lambda settings: float(settings["seed"]))
    tune(launcher, [RATE, "seed=1,2,6"], trials=3, jobs=7)
    assert [one["seed"] for one in launcher.tried] == ["1", "2", "6"] * 3
    assert launcher.batches == [6, 3]
    assert best(tmp_path)["score"] == 3.0
    assert "seed" not in best(tmp_path)["command"]


def test_failed_and_undefined_scores_are_no_scores(tune: Any, tmp_path: Path) -> None:
    def score(settings: dict[str, str]) -> float | None:
        return {"a": None, "b": math.nan, "c": -1.0}[settings["model.name"]]

    tune(Launcher(score), ["model.name=a,b,c"])
    assert best(tmp_path)["settings"] == {"model.name": "c"}
    states = [
        one["state"]
        for one in map(json.loads, (tmp_path / "t/study.journal").read_text().splitlines())
        if "state" in one
    ]
    assert set(states) == {
        optuna.trial.TrialState.COMPLETE.value,
        optuna.trial.TrialState.FAIL.value,
    }
    again = Launcher(lambda settings: 0.5)
    tune(again, ["model.name=a,b,c"], resume=True)
    assert len(again.tried) == states.count(optuna.trial.TrialState.FAIL.value)


def test_nothing_but_failures_is_an_error(tune: Any) -> None:
    with pytest.raises(UserError, match="none of 3 trials has a score"):
        tune(Launcher(lambda settings: None), [RATE], trials=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lr=interval(1e-2,1e-3)"], "lower end must be below the upper"),
        (["optimizer.lr=interval(1e-2,1e-2)"], "lower end must be below the upper"),
        (["optimizer.lr=interval(0,1e-2)"], "a logarithmic range begins above 0"),
        (["dem.eta=tag(log,interval(0,1))"], "a logarithmic range begins above 0"),
        (["dem.eta=interval(0,inf)"], "both finite"),
        (["dem.eta=tag(lgo,interval(0,1))"], "Did you mean 'log'"),
        (["optimizer.lr=1e-3", "seed=1,2"], "nothing to search"),
    ],
)
def test_a_range_that_cannot_be_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_space(arguments)


def test_ranges_become_distributions() -> None:
    space = parse_space(
        [
            RATE,
            "optimizer.warmup=interval(0,0.2)",
            "budget.init=int(interval(2,8))",
            "dem=paper,off",
            "task=cola",
            "seed=3",
        ]
    )
    kinds = optuna.distributions
    assert space.distributions == {
        "optimizer.lr": kinds.FloatDistribution(1e-5, 1e-2, log=True),
        "optimizer.warmup": kinds.FloatDistribution(0, 0.2),
        "budget.init": kinds.IntDistribution(2, 8),
        "dem": kinds.CategoricalDistribution(["paper", "off"]),
    }
    assert (space.fixed, space.seeds) == (["task=cola", "seed=3"], [])
    assert (
        parse_space(["optimizer.lr=tag(linear,interval(0,1))"]).distributions["optimizer.lr"].log
        is False
    )


def test_without_optuna_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'dynarank\[tune\]'"):
        search_space.parse_space([RATE])


def test_the_experiment_killed_and_carried_on(
    hub_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real command on a tiny model: bad values are refused; killed, the search resumes."""
    folder = tmp_path / "t"
    command = [
        str(REPOSITORY / "train.py"),
        "experiment=tune",
        "task=cola",
        "method=head",
        "logger=none",
        "trainer.epochs=1",
        f"hub.root={hub_root}",
        f"hydra.sweep.dir={folder}",
        "hydra.sweeper.n_trials=2",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return forked_command([*command, *more], tmp_path, environment)

    refused = run("optimizer.warmup=interval(0,2)")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(
        "error: optimizer.warmup = 2.0 would be tried, and is out of range"
    )
    process = begin_command(command, tmp_path, environment, tmp_path)
    second = ""
    while process.is_alive() and not second:
        second = "".join(file.read_text() for file in folder.glob("1_*/running.json"))
        time.sleep(0.1)
    process.kill()  # before its run, whose end it would record
    process.join()
    with suppress(ProcessLookupError):  # it may have ended meanwhile
        os.kill(json.loads(second)["pid"], signal.SIGKILL)
    first = next(folder.glob("0_*/metrics.json")).stat().st_mtime_ns
    done = run("sweep.resume=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [point.status() for point in read_sweep(folder)] == ["done"] * 2
    assert next(folder.glob("0_*/metrics.json")).stat().st_mtime_ns == first
    found = json.loads((folder / "best.json").read_text())
    assert found["score"] == max(point.score for point in read_sweep(folder))
    assert f"to run it: {found['command']}" in done.stdout
    report_main([str(folder), "--status"])
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .endswith("t: 2 done, 0 running, 0 failed, 0 missing")
    )
    report_main([str(folder)])
    assert "| optimizer.lr | cola (matthews) |" in capsys.readouterr().out
