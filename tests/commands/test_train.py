"""The front door, as a user meets it: commands in fresh processes, their exit codes and what they
print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from tiny import CONF, REPOSITORY, compose

from dynarank.commands.train_help import help_text
from dynarank.config.schema import to_config
from dynarank.errors import UserError
from dynarank.runs.run import run


def command(
    *arguments: str, folder: Path, hub: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`train.py` in a fresh process, as the user starts it."""
    environment = {
        **os.environ,
        "WANDB_MODE": "offline",
        "HF_HOME": str(folder / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    environment.pop("DYNARANK_HUB", None)
    if hub is not None:
        environment["DYNARANK_HUB"] = str(hub)
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_readmes_first_command(tmp_path: Path, hub_root: Path) -> None:
    done = command("task=cola", "budget=r8", folder=tmp_path, hub=hub_root)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("outputs/cola-dora-r8-roberta-base/*")
    record = json.loads((folder / "metrics.json").read_text())
    assert (record["components_kept"], record["budget_target"]) == (8 * 12, 8)
    assert "at budget" in done.stdout
    assert str(folder.relative_to(tmp_path)) in done.stdout.replace("\n", "").replace(
        "│", ""
    ).replace(" ", "")
    assert (folder / ".hydra" / "config.yaml").is_file()
    assert list(folder.glob("wandb/offline-run-*"))
    assert "T = 45 steps" in done.stdout


def test_the_readmes_sweep(tmp_path: Path, hub_root: Path) -> None:
    short = ["trainer.epochs=1", "logger=none"]
    values = ["dem.eta=0,0.1", "budget.init=2,4,8"]
    done = tiny.command("-m", *values, *short, folder=tmp_path, DYNARANK_HUB=str(hub_root))
    assert done.returncode == 0, done.stderr
    records = [
        json.loads(file.read_text()) for file in tmp_path.glob("outputs/sweeps/*/*/metrics.json")
    ]
    assert [record["components_kept"] for record in records] == [24] * 6
    assert len({record["output_dir"] for record in records}) == 6


def test_without_network_or_local_copy_it_ends_soon_and_says_what_to_do(tmp_path: Path) -> None:
    start = time.monotonic()
    done = command("task=cola", "budget=r8", folder=tmp_path)
    if done.returncode == 0 or "does not answer" not in done.stderr:
        pytest.skip("this machine reaches the hub")
    assert (
        time.monotonic() - start < 30
    )  # a promise, with seconds to spare: the hub is asked once, and briefly
    for part in (
        "task.path = nyu-mll/glue",
        "model.path = FacebookAI/roberta-base",
        "DYNARANK_HUB",
        "experiment=quickstart",
    ):
        assert part in done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("hydra.run.dir=/proc/nowhere", "/proc/nowhere cannot be written"),
        ("budget.init=1", "budget.init = 1 is below budget.target = 2"),
        ("task=colla", "Did you mean 'cola'"),
        ("model.targets=[quary]", "'quary' matches no linear layer"),
        ("trainer.precision=16-mixed", "trainer.precision = 16-mixed needs a CUDA GPU"),
    ],
)
def test_a_mistake_is_one_error_and_no_trace(
    override: str, said: str, tmp_path: Path, hub_root: Path
) -> None:
    import torch

    if "16" in override and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    done = tiny.command(override, folder=tmp_path, DYNARANK_HUB=str(hub_root))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if override.startswith(("budget", "task")):  # a mistake that the configuration alone shows
        assert not (tmp_path / "outputs").exists()


HEAVY = ("torch", "lightning", "transformers", "hydra", "omegaconf")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=-1", "optimizer.lr = -1"),
        ("task.train_file=rows.csv", "task.train_file = rows.csv: there is no such file"),
        ("model.path=./nowhere", "model.path = ./nowhere: no such folder"),
        ("model.path=./nowhere.gguf", "model.path = ./nowhere.gguf: no such file"),
    ],
)
def test_a_mistake_in_settings_and_paths_is_answered_before_torch_is_imported(
    override: str, said: str, tmp_path: Path
) -> None:
    task = "text_classification" if "file" in override else "tweets"
    script = (
        "import sys\n"
        "from dynarank.commands.train import main\n"
        "try:\n"
        f"    main(['task={task}', {override!r}, {f'output_dir={tmp_path}/run'!r}])\n"
        "finally:\n"
        f"    print([name for name in {HEAVY[:3]!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert said in done.stderr
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--help", "settings"]])
def test_help_answers_without_importing_anything_heavy(
    arguments: list[str], tmp_path: Path
) -> None:
    script = (
        "import runpy, sys\n"
        f"sys.argv = {[str(REPOSITORY / 'train.py'), *arguments]!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert ("optimizer.lr: float or null" in done.stdout) == ("settings" in arguments)


def test_help_is_one_screen_of_examples_and_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text("name: mine\n")
    monkeypatch.setattr(sys, "argv", [str(REPOSITORY / "train.py")])
    text = help_text(["--help", "--config-dir", str(tmp_path)])
    lines = text.splitlines()
    assert len(lines) <= 40
    assert all(len(line.replace(str(REPOSITORY), "")) <= 100 for line in lines)
    assert f"python {REPOSITORY / 'train.py'} experiment=quickstart" in text
    assert "schema" not in text
    assert "hydra/" not in text
    words = set(text.replace(",", " ").split())
    for file in CONF.glob("*/*.yaml"):
        assert file.stem in words
    assert "mine" in words
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dynarank"])
    assert "  dynarank train experiment=quickstart" in help_text([])


SINGLE = sorted(
    file.stem for file in (CONF / "experiment").glob("*.yaml") if "sweeper" not in file.read_text()
)
"""Experiments of one run; the sweeps are in test_experiments.py."""
LARGE = {"quickstart_llm"}
"""Those whose model takes minutes to unpack and to train a step of."""


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(name, marks=[pytest.mark.large] if name in LARGE else []) for name in SINGLE],
)
def test_every_single_experiment_runs_in_a_fast_mode(experiment: str, tmp_path: Path) -> None:
    fast = [
        "trainer.epochs=1",
        "trainer.max_steps=4",
        "task.max_train_rows=32",
        "task.max_validation_rows=32",
    ]
    config = to_config(
        compose([f"experiment={experiment}", f"output_dir={tmp_path}", "logger=none", *fast])
    )
    try:
        results = run(config)
    except UserError as error:
        if "not installed" in str(error) or "could not be downloaded" in str(error):
            pytest.skip(str(error))
        raise
    assert results.at_budget
    assert results.components_kept == results.components_target
