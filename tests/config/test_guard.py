"""What Hydra composes is checked before Hydra acts on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf
from tiny import CONF

from dynarank.config.folders import folder_name
from dynarank.config.guard import check, guarded, refuse_pickle
from dynarank.config.schema import LoggerConfig, register_schemas
from dynarank.errors import UserError
from dynarank.pretrained.hub import ModelConfig
from dynarank.tasks.config import TaskConfig


def composed(*overrides: str, conf: Path = CONF, name: str = "train") -> Any:
    register_schemas()
    with guarded(), hydra.initialize_config_dir(str(conf), version_base="1.3"):
        return hydra.compose(name, overrides=["output_dir=x", *overrides], return_hydra_config=True)


def with_hydra(folder: Path, text: str) -> Any:
    """The composition of a file of the user's whose `hydra` node is the text, indented by two."""
    (folder / "mine.yaml").write_text(f"defaults: [train]\nhydra:\n{text}")
    return composed(f"hydra.searchpath=[file://{CONF}]", conf=folder, name="mine")


TARGETS = [
    ("callbacks", "os.system"),
    ("callbacks", "shutil.copyfile"),
    ("callbacks", "torch.load"),
    ("callbacks", "hydra.utils.call"),
    ("callbacks", "dynarank.sweeps.sweep.subprocess.run"),
    ("callbacks", "dynarank.runs.run.run"),
    ("callbacks", "hydra_plugins.dynarank_launcher.ConfigStore"),
    ("launcher", "os.system"),
    ("launcher", "dynarank.no_such_module.Class"),
    ("sweeper", "antigravity.webbrowser.open"),
]


@pytest.mark.parametrize(("where", "target"), TARGETS)
def test_only_classes_of_the_listed_packages_are_built(where: str, target: str) -> None:
    with pytest.raises(
        UserError, match=rf"hydra\.{where}\.x\._target_ = {target}: a configuration may build only"
    ):
        composed(f"+hydra.{where}.x._target_={target}")


IN_FILES = [
    "  job_logging: {filters: {x: {'()': os.system, command: 'true'}}}\n",
    "  job_logging: {formatters: {x: {'()': os.system}}}\n",
    "  job_logging: {formatters: {x: {class: os.system}}}\n",
    "  hydra_logging: {handlers: {x: {class: logging.handlers.SocketHandler}}}\n",
    "  hydra_logging: {handlers: {x: {class: logging.StreamHandler, stream: ext://antigravity.webbrowser}}}\n",
    "  callbacks: {x: {_target_: ['os.system']}}\n",
    "  callbacks: {x: {y: [{z: {_target_: os.system}}]}}\n",
    "  callbacks: {x: {_target_: '${hydra.job.env_set.X}'}}\n  job: {env_set: {X: os.system}}\n",
    "  callbacks: {x: '${oc.create:\"{_target_: os.system}\"}'}\n",
    "  callbacks: {x: '${oc.create:\"${hydra:job.env_set.X}\"}'}\n  job: {env_set: {X: '{}'}}\n",
    "  callbacks: {x: '${hydra.job.env_set}'}\n  job: {env_set: {_target_: os.system}}\n",
]


@pytest.mark.parametrize("text", IN_FILES)
def test_nor_from_a_file_by_whatever_way(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^mine\.yaml sets hydra\..*: a file may not set this key"):
        with_hydra(tmp_path, text)


def test_a_saved_configuration_is_checked_when_it_is_run_again(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "output_dir: y\nhydra: {callbacks: {x: {_target_: os.system, command: 'true'}}}\n"
    )
    with pytest.raises(UserError, match=r"^config\.yaml sets hydra\.callbacks\.x\._target_"):
        composed(conf=tmp_path, name="config")


def test_what_hydra_and_its_plugins_bring_is_built() -> None:
    composed("hydra/launcher=basic", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled")
    composed("+hydra.callbacks.x._target_=hydra.experimental.callbacks.LogJobReturnCallback")
    assert (
        composed().hydra.launcher._target_ == "hydra_plugins.dynarank_launcher.FreshProcessLauncher"
    )


TYPED = [
    ["+hydra.job_logging.formatters.x={class: os.system}"],
    ["+hydra.hydra_logging.handlers.x={class: logging.handlers.SocketHandler}"],
    [
        "+hydra.hydra_logging.handlers.x="
        "{class: logging.StreamHandler, stream: 'ext://antigravity.webbrowser'}"
    ],
    ["+hydra.callbacks.x={_target_: [os.system]}"],
    ["+hydra.callbacks.x={y: [{z: {_target_: os.system}}]}"],
    ["+hydra.callbacks.x={_target_: '${hydra.job.env_set.X}'}", "+hydra.job.env_set.X=os.system"],
    ["+hydra.callbacks.x='${hydra.job.env_set}'", "+hydra.job.env_set._target_=os.system"],
]


@pytest.mark.parametrize("overrides", TYPED)
def test_nor_from_the_command_line_by_whatever_way(overrides: list[str]) -> None:
    with pytest.raises(UserError, match=r"may build only|must be one of ext"):
        composed(*overrides)


def test_a_factory_of_pythons_logging_is_a_builder() -> None:
    with pytest.raises(UserError, match="may build only"):
        check(OmegaConf.create({"hydra": {"job_logging": {"filters": {"x": {"()": "os.system"}}}}}))


@pytest.mark.parametrize(
    "text",
    [
        "job: {env_set: {HF_ENDPOINT: 'https://example.org'}}",
        "job: {env_copy: [HOME]}",
        "job: {name: ../../x}",
        "job: {chdir: true}",
        "output_subdir: ../../x",
        "job_logging: {handlers: {file: {filename: /tmp/x}}}",
        "job_logging: {formatters: {simple: {format: 'curl x'}}}",
        "runtime: {output_dir: /tmp/x}",
        "overrides: {hydra: [x]}",
        "launcher: {setup: ['true']}",
        "launcher: {additional_parameters: {x: y}}",
        "launcher: {address: 'ray://example.org'}",
        "launcher: {_target_: hydra_plugins.dynarank_launcher.RayLauncher}",
        "launcher: '${oc.env:X}'",
        'launcher: {partition: "gpu\\ncurl x"}',
        "launcher: {account: '${oc.env:X}'}",
        "launcher: {partition: 'a b'}",
        "launcher: {devices: [0, '1 2']}",
        "sweeper: {params: {hydra.job.env_set.X: y}}",
        "sweeper: {params: {+hydra.job.env_set.X: y}}",
        "sweeper: {params: {model@hydra.job.env_set: minilm}}",
        "sweeper: {params: {model.trust_remote_code: true}}",
        "searchpath: ['pkg://antigravity']",
        "run: {dir: /tmp/x}",
        "run: {dir: ../x}",
        "run: {dir: '~/x'}",
        "sweep: {dir: '${oc.env:HOME}'}",
    ],
)
def test_a_file_may_set_no_other_key_of_hydras(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a primary file, by a file of a group, and by a file that names its own place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/nobody-here")
    (tmp_path / "mine.yaml").write_text(f"defaults: [train, _self_]\nhydra: {{{text}}}\n")
    composed_with_path = [] if "searchpath" in text else [f"hydra.searchpath=[file://{CONF}]"]
    with pytest.raises(UserError, match=r"a file may (not|choose only)|imports a package"):
        composed(*composed_with_path, conf=tmp_path, name="mine")
    if "searchpath" in text:
        return
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text(f"# @package hydra\n{text}\n")
    with pytest.raises(UserError, match=r"a file may (not|choose only)"):
        composed("+task@hydra=mine", f"hydra.searchpath=[file://{tmp_path}]")


def test_a_file_does_not_let_a_models_code_run(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "defaults: [train, _self_]\nmodel: {trust_remote_code: true}\n"
    )
    with pytest.raises(UserError, match=r"Type it: model\.trust_remote_code=true"):
        composed(f"hydra.searchpath=[file://{CONF}]", conf=tmp_path, name="mine")


def test_a_file_does_not_let_a_models_code_run_by_a_reference(tmp_path: Path) -> None:
    """A whole group taken from a text, or from elsewhere in the file, would hide the setting."""
    for reference in ("${oc.create:'{trust_remote_code: true}'}", "${mine}"):
        (tmp_path / "mine.yaml").write_text(
            f'defaults: [train, _self_]\nmodel: "{reference}"\nmine: {{path: a/b}}\n'
        )
        with pytest.raises(UserError, match=r"could set model\.trust_remote_code"):
            composed(f"hydra.searchpath=[file://{CONF}]", conf=tmp_path, name="mine")


def test_a_file_may_set_what_a_sweep_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "defaults: [train, _self_, {override hydra/launcher: submitit_slurm}]\n"
        "seed: 7\n"
        "hydra:\n  mode: MULTIRUN\n  run: {dir: runs/mine}\n  sweep: {dir: runs/s, subdir: x}\n"
        "  sweeper: {params: {budget: 'r2,r4', dem.eta: '0,0.1'}}\n"
        "  launcher: {timeout_min: 60, gpus_per_node: 1, partition: gpu, mem_gb: 8}\n"
    )
    whole = composed(f"hydra.searchpath=[file://{CONF}]", conf=tmp_path, name="mine")
    assert (whole.seed, whole.hydra.launcher.partition) == (7, "gpu")
    assert whole.hydra.run.dir == "runs/mine"


def test_a_file_may_name_devices(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "defaults: [train, _self_]\nhydra: {launcher: {n_jobs: 2, devices: [0, 1]}}\n"
    )
    whole = composed(f"hydra.searchpath=[file://{CONF}]", conf=tmp_path, name="mine")
    assert list(whole.hydra.launcher.devices) in ([0, 1], ["0", "1"])


def test_what_is_typed_may_choose_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert composed("hydra.run.dir=/tmp/x").hydra.run.dir == "/tmp/x"
    assert composed("hydra.run.dir='~/run'").hydra.run.dir == str(tmp_path / "run")


def test_a_configuration_that_holds_itself_is_checked_all_the_same() -> None:
    composed("+hydra.job.env_set.X='${hydra.job.name}'", "+hydra.callbacks.y='${hydra.launcher}'")
    with pytest.raises(UserError, match="nests too deep"):
        composed("+hydra.callbacks." + ".".join("abcdefgh" * 5) + "=1")


def test_the_check_ends_with_its_block() -> None:
    with guarded():
        pass
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        hydra.compose(
            "train",
            overrides=["output_dir=x", "+hydra.callbacks.x._target_=os.system"],
            return_hydra_config=True,
        )


SECRETS = [
    "+hydra.job.env_set.HF_TOKEN=canary",
    "+hydra.job.env_set.WANDB_API_KEY=canary",
    "+logger.api_key=canary",
    "+model.token=canary",
    "+hub.password=canary",
    "+task.credentials={user:canary}",
    "task.path=hf_canarycanarycanarycanary",
    "task.path=ghp_canarycanarycanarycanary",
    "hub.root='https://me:canary@host/hub'",
    "model.path='https://canary@host/x.git'",
    "task.train_file='https://host/a.csv?X-Amz-Signature=canary&b=1'",
    "task.train_file='s3://key:canary@bucket/a.csv'",
    "logger.project='${oc.env:CANARY_TOKEN}'",
    "logger.project='x-${oc.env:CANARY_TOKEN}-y'",
    "logger.project='${oc.decode:${oc.env:CANARY_TOKEN}}'",
    "logger.project=not-so-secret-canary",
    "logger.project='${oc.env:HOME,hf_canarycanarycanarycanary}'",
    "hydra.run.dir='/tmp/${oc.env:CANARY_TOKEN}'",
    "+hydra.job.env_set.X='${oc.env:CANARY_TOKEN}'",
]


@pytest.mark.parametrize("override", SECRETS)
def test_secrets_are_refused_and_never_shown(
    override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_TOKEN", "not-so-secret-canary")
    with pytest.raises(UserError, match="saved with its run") as caught:
        composed(override)
    assert "canary" not in str(caught.value)


def test_a_secret_in_the_hubs_variable_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNARANK_HUB", "https://me:canary@host/hub")
    with pytest.raises(UserError, match=r"^hub\.root holds") as caught:
        composed()
    assert "canary" not in str(caught.value)


INNOCENT = [
    "task.columns.label=password",
    "+hydra.job.env_set.TOKENIZERS_PARALLELISM='false'",
    "task.max_length=64",
    "model.revision=0123456789abcdef0123456789abcdef01234567",
    "hub.root=/data/me@home/hub",
    "task.path='https://host/a?split=train'",
]


@pytest.mark.parametrize("override", INNOCENT)
def test_what_only_resembles_a_secret_is_not_refused(
    override: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEPLOY_KEY", str(tmp_path))  # says where a key lies
    monkeypatch.setenv("SHORT_KEY", "cola")
    composed(override, f"hub.root={tmp_path}" if "hub.root" not in override else "seed=1")


@pytest.mark.parametrize(
    "option", ["--experimental-rerun", "--experimental-rerun=x.pickle", "--exp", "--e=x"]
)
def test_hydras_pickles_are_refused(option: str) -> None:
    with pytest.raises(UserError, match="loads a pickle"):
        refuse_pickle(["task=cola", option, "x.pickle"])
    refuse_pickle(["task=cola", "experiment=quickstart", "-m"])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cola-dora-r2-m", "cola-dora-r2-m"),
        ("../../x", "_._.._x"),
        ("/etc/x", "_etc_x"),
        ("a\\b", "a_b"),
        ("a\0b\n", "a_b_"),
        ("..", "_."),
        (".hidden", "_hidden"),
        ("-m", "_m"),
        ("model.targets=[query,key] $x*", "model.targets-_query_key___x_"),
        ("task.subset=../../x,seed=1", "task.subset-.._.._x_seed-1"),
    ],
)
def test_a_name_is_one_folder_inside_its_parent(text: str, name: str) -> None:
    assert folder_name(text) == name


def test_long_names_are_cut_and_stay_apart(tmp_path: Path) -> None:
    names = {folder_name("é" * 300 + end) for end in "ab"}
    assert len(names) == 2
    for name in names:
        (tmp_path / f"123_{name}").mkdir()


@pytest.mark.parametrize(
    "name", ["../../x", "/etc", "a/b", "..", "", "a\0b", "x" * 97, "a\nb", "-rf"]
)
def test_names_that_could_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"model\.name = .*must be 1 to 96 letters"):
        ModelConfig(name=name, path="org/model")
    with pytest.raises(ValueError, match=r"task\.name = .*must be 1 to 96 letters"):
        TaskConfig(name=name)


@pytest.mark.parametrize("project", ["a/b", "", "x" * 129, "a?b"])
def test_projects_that_wandb_would_refuse_are_refused_before(project: str) -> None:
    with pytest.raises(ValueError, match=r"logger\.project = "):
        LoggerConfig(project=project)
