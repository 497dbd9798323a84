"""Every experiment names runs that are valid, at both scales, and a small one really runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from tiny import CONF, REPOSITORY

from dynarank.config.schema import register_schemas, to_config
from dynarank.report.runs import read_runs
from dynarank.report.tables import build_table

SWEEPS = sorted(
    file.stem
    for file in (CONF / "experiment").glob("*.yaml")
    if "sweeper" in file.read_text() and file.stem != "tune"  # which searches instead
)


def sweep_of(name: str, scale: str) -> dict[str, list[str]]:
    """What an experiment sweeps: values by setting."""
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra.compose(
            "train", [f"experiment={name}", f"scale={scale}"], return_hydra_config=True
        )
    assert composed.hydra.mode.name == "MULTIRUN"
    assert composed.hydra.launcher._target_.endswith("FreshProcessLauncher")
    return {key: str(values).split(",") for key, values in composed.hydra.sweeper.params.items()}


@pytest.mark.parametrize("scale", ["full", "small"])
@pytest.mark.parametrize("name", SWEEPS)
def test_every_point_is_a_valid_run(name: str, scale: str) -> None:
    swept = sweep_of(name, scale)
    assert len(swept["seed"]) == {"full": 5, "small": 3}[scale]
    fixed = [f"experiment={name}", f"scale={scale}", "output_dir=x"]
    if name == "table4_xsum":
        fixed.append("model=bart_base")  # MiniLM, the small scale's, writes no texts
    first = {key: values[0] for key, values in swept.items() if key != "seed"}
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for changed, value in ((key, value) for key in first for value in swept[key]):
            point = [f"{key}={chosen}" for key, chosen in {**first, changed: value}.items()]
            config = to_config(hydra.compose("train", [*fixed, *point]))
            if scale == "small":
                assert (config.task.max_train_rows, config.epochs) == (2000, 3)
                assert config.model.name == ("bart-base" if name == "table4_xsum" else "minilm")


def test_an_experiment_runs_from_its_command_to_its_table(hub_root: Path, tmp_path: Path) -> None:
    overrides = [
        "experiment=table5_dem",
        "scale=small",
        "task=cola",
        "seed=1",
        "logger=none",
        "trainer.epochs=1",
        f"hub.root={hub_root}",
        "model=roberta_base",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), *overrides],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = build_table(read_runs([tmp_path / "sweep"])[0])
    assert (table.keys, table.settings, table.tasks) == (["dem.eta"], [(0.0,), (0.1,)], ["cola"])
