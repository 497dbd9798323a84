"""Every experiment names runs that are valid, at both scales, and a small one really runs."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf
from tiny import CONF, command, compose

from dynarank.config.describe import setting_names, variants_with
from dynarank.config.schema import SCHEMAS, register_schemas, to_config
from dynarank.report.runs import read_runs
from dynarank.report.tables import build_table

EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
CHOSEN_GROUPS = ("model", "method", "budget", "dem", "trainer", "logger")
"""Groups whose choice on the command line is meant as a whole. A task's rows and batches are an
experiment's to cut."""
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


def leaves(node: DictConfig, prefix: str = "") -> dict[str, object]:
    """The dotted names and the values that a file sets itself."""
    found: dict[str, object] = {}
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            found |= leaves(child, f"{prefix}{key}.")
        elif key != "defaults":
            found[f"{prefix}{key}"] = OmegaConf.to_container(node, resolve=False)[key]
    return {name: value for name, value in found.items() if not name.startswith("hydra.")}


def set_by(file: Path) -> dict[str, object]:
    """What a file of conf/ sets, by the settings' names."""
    text = file.read_text()
    is_global = text.startswith("# @package _global_")
    content = OmegaConf.create(text)
    assert isinstance(content, DictConfig)
    return leaves(content, "" if is_global else f"{file.parent.name}.")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_sets_what_every_method_and_task_has(name: str) -> None:
    for setting in set_by(CONF / "experiment" / f"{name}.yaml"):
        assert setting in setting_names()
        group = setting.partition(".")[0]
        variants = [path for path in SCHEMAS if path.startswith(f"{group}/")]
        assert len(variants_with(setting)) == len(variants), f"some lack {setting}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_leaves_a_choice_of_the_command_line_alone(name: str) -> None:
    """The experiment's file is read after the choice's, and would silently win."""
    own = set_by(CONF / "experiment" / f"{name}.yaml")
    for group in CHOSEN_GROUPS:
        for file in (CONF / group).glob("*.yaml"):
            chosen = set_by(file)
            differing = [key for key in own.keys() & chosen.keys() if own[key] != chosen[key]]
            assert differing == [], f"{group}={file.stem}"


def test_the_bench_leaves_a_gpu_alone_unless_it_is_asked_for() -> None:
    shared = ["experiment=does_it_pay", "output_dir=x"]
    assert compose(shared).trainer.accelerator == "cpu"
    on_gpu = compose([*shared, "trainer=gpu"]).trainer
    assert (on_gpu.accelerator, on_gpu.precision, on_gpu.epochs) == ("gpu", "bf16-mixed", 1)


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
    done = command(*overrides, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = build_table(read_runs([tmp_path / "sweep"])[0])
    assert (table.keys, table.settings, table.tasks) == (["dem.eta"], [(0.0,), (0.1,)], ["cola"])
