"""Canaries: hostile models, data, adapters and configurations run nothing, and secrets are in no
file of a run."""

from __future__ import annotations

import ast
import json
import logging
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import REPOSITORY, command, configure, tiny_roberta, write_dataset, write_model

from dynarank.commands.predict import main as predict
from dynarank.errors import UserError
from dynarank.pretrained.hub import ModelConfig, Source, check_sha256, locate, warn_of_remote_code
from dynarank.pretrained.models import check_fit, load_pretrained, load_settings, load_tokenizer
from dynarank.runs.run import run
from dynarank.tasks import build_task


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def code(canary: Path) -> str:
    """A module for a config.json's auto_map."""
    return (
        f"from pathlib import Path\nPath({str(canary)!r}).touch()\n"
        "from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification\n"  # noqa: E501
        "class OwnConfig(RobertaConfig):\n    model_type = 'own'\n"
        "class OwnModel(RobertaForSequenceClassification):\n    config_class = OwnConfig\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def model(tmp_path: Path, canary: Path) -> Path:
    """A folder whose files ask for code of its own in every way they can."""
    folder = write_model(tmp_path / "model", tiny_roberta())
    (folder / "own.py").write_text(code(canary))
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    edit(folder / "config.json", auto_map=names, model_type="own")
    edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]},
        tokenizer_class="OwnTokenizer",
    )
    return folder


def cola() -> Any:
    return build_task(configure(Path("unused"), Path("unused")).task)


def load(folder: Path, **settings: Any) -> Any:
    source, config = Source(str(folder), str(folder)), ModelConfig(path=str(folder), **settings)
    task = cola()
    check_fit(config, source, task)
    return load_pretrained(config, source, task, load_tokenizer(config, source)).model


@pytest.mark.parametrize("kind", ["own", "roberta"])
def test_a_models_own_code_does_not_run(kind: str, model: Path, canary: Path) -> None:
    edit(model / "config.json", model_type=kind)
    if kind == "own":
        with pytest.raises(
            UserError, match=r"needs code of its own.*model\.trust_remote_code=true"
        ):
            load(model)
    else:  # transformers knows the architecture, and needs no code
        assert type(load(model)).__module__.startswith("transformers.")
    assert not canary.exists()


def test_a_tokenizers_own_code_does_not_run(model: Path, canary: Path) -> None:
    with pytest.raises(UserError, match="its tokenizer needs code of its own"):
        load_tokenizer(ModelConfig(path=str(model)), Source(str(model), str(model)))
    assert not canary.exists()


def test_asked_for_it_runs_and_is_warned_of(
    model: Path,
    canary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hub_root: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "modules")])
    overrides = [
        f"model.path={model}",
        "model.trust_remote_code=true",
        "model.targets=[query]",
        "trainer.epochs=1",
    ]
    with caplog.at_level(logging.WARNING):
        results = run(configure(tmp_path / "run", hub_root, *overrides))
    assert canary.exists()
    assert results.at_budget
    assert f"Python code from {model} runs here" in caplog.text
    canary.unlink()
    shutil.rmtree(tmp_path / "modules")
    (tmp_path / "in.csv").write_text("sentence\na cat\n")
    arguments = [
        str(tmp_path / "run"),
        "--input",
        str(tmp_path / "in.csv"),
        "--output",
        str(tmp_path / "o.csv"),
    ]
    with pytest.raises(
        SystemExit
    ):  # that the adapter's folder says it was trusted once does not count
        predict(arguments)
    assert not canary.exists()
    predict([*arguments, "--trust-remote-code"])
    assert canary.exists()


@pytest.mark.parametrize(
    ("revision", "pinned"), [(None, False), ("main", False), ("v1.0", False), ("a" * 40, True)]
)
def test_code_that_can_change_is_warned_of(
    revision: str | None, pinned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = ModelConfig(path="org/model", revision=revision, trust_remote_code=True)
    warn_of_remote_code(config, Source("org/model", "org/model"))
    assert ("Set model.revision=COMMIT" in caplog.text) is not pinned
    assert "Python code from org/model runs here" in caplog.text
    caplog.clear()
    warn_of_remote_code(ModelConfig(path="org/model"), Source("org/model", "org/model"))
    assert not caplog.text


@pytest.mark.parametrize(
    "name", ["_attn_implementation", "attn_implementation", "experts_implementation"]
)
def test_a_kernel_of_the_hub_is_code(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", tiny_roberta())
    source, config = Source(str(folder), str(folder)), ModelConfig(path=str(folder))
    load_settings(config, source)
    for value in ({name: "org/kernel"}, {"text_config": {name: "org/kernel:function"}}):
        edit(folder / "config.json", **value)
        with pytest.raises(
            UserError, match=rf"names {name} = org/kernel.*not run unless asked for"
        ):
            load_settings(config, source)
        edit(folder / "config.json", **dict.fromkeys(value))


def as_archive(bomb: Bomb, path: Path) -> None:
    torch.save({"classifier.dense.weight": torch.zeros(1), "x": bomb}, path)


def as_pickle(bomb: Bomb, path: Path) -> None:
    path.write_bytes(pickle.dumps(bomb))


@pytest.mark.parametrize("write", [as_archive, as_pickle])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_weights_are_refused(
    name: str, write: Callable[..., None], tmp_path: Path, canary: Path
) -> None:
    folder = write_model(tmp_path / "m", tiny_roberta())
    (folder / "model.safetensors").unlink()
    write(Bomb(canary), folder / name)
    with pytest.raises(UserError, match=r"model\.path = .*no model can be loaded from"):
        load(folder)
    assert not canary.exists()


def test_honest_weights_of_the_old_form_are_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = write_model(tmp_path / "m", tiny_roberta())
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    name, value = next(
        (name, value) for name, value in weights.items() if name.endswith("query.weight")
    )
    assert torch.equal(load(folder).state_dict()[f"roberta.{name}"], value)
    with pytest.raises(UserError, match=r"model\.sha256 = 00: there is no model\.safetensors"):
        check_sha256(ModelConfig(path="m", sha256="00"), Source(str(folder), "m"))


def test_a_hash_that_cannot_be_checked_on_the_hub_is_an_error() -> None:
    with pytest.raises(UserError, match=r"there is no model\.safetensors in org/none to check"):
        check_sha256(ModelConfig(path="org/none", sha256="00"), Source("org/none", "org/none"))


def test_an_adapter_in_a_models_place_is_refused(tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForSequenceClassification

    folder = write_model(tmp_path / "m", tiny_roberta())
    base = AutoModelForSequenceClassification.from_pretrained(folder)
    shutil.copytree(folder, tmp_path / "a")
    peft.get_peft_model(base, peft.LoraConfig(target_modules=["query"], r=2)).save_pretrained(
        tmp_path / "a"
    )
    with pytest.raises(UserError, match="is an adapter, not a model"):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    "path", ["package:os.path/x", "package:transformers/../..", "package:/etc", "package:"]
)
def test_a_package_is_a_plain_name(path: str) -> None:
    with pytest.raises(UserError, match="must be package:MODULE/FOLDER"):
        locate("models", "model.path", path, None)


@pytest.mark.parametrize("beside", ["data", "a pickle"])
def test_a_data_sets_script_does_not_run(
    beside: str, tmp_path: Path, canary: Path, hub_root: Path
) -> None:
    folder = tmp_path / "tweets"
    folder.mkdir()
    rows = {"text": ["a cat", "a dog"] * 4, "label": [0, 1] * 4}
    if beside == "data":
        write_dataset(folder, "tweets", {"train": rows, "validation": rows})
        (folder / "tweets.py").write_text(
            f"from pathlib import Path\nPath({str(canary)!r}).touch()\n"
        )
    else:
        for name in ("train.pkl", "train.pickle", "train.pt"):
            (folder / name).write_bytes(pickle.dumps(Bomb(canary)))
    config = configure(tmp_path / "run", hub_root, "task=tweets", f"task.path={folder}")
    with pytest.raises(UserError, match=r"task\.path = .*cannot be read"):
        build_task(config.task).read(config.hub)
    assert not canary.exists()


@pytest.mark.parametrize("write", [as_archive, as_pickle])
def test_a_pickle_in_place_of_a_checkpoint_does_not_run(
    write: Callable[..., None], tmp_path: Path, canary: Path, hub_root: Path
) -> None:
    write(Bomb(canary), tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt"):
        run(configure(tmp_path / "run", hub_root, f"resume.path={tmp_path / 'last.ckpt'}"))
    assert not canary.exists()


def test_a_checkpoint_is_not_fetched(tmp_path: Path, hub_root: Path) -> None:
    with pytest.raises(UserError, match=r"resume"):
        run(configure(tmp_path / "run", hub_root, "resume.path=http://localhost:9/last.ckpt"))


FORBIDDEN = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "load_from_checkpoint",
    "instantiate",
    "unsafe_load",
    "full_load",
    "read_pickle",
}


def test_no_line_of_the_project_unpickles_or_evaluates() -> None:
    for file in [*(REPOSITORY / "src").rglob("*.py"), REPOSITORY / "train.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [
                alias.name.partition(".")[0]
                for alias in getattr(node, "names", [])
                if isinstance(alias, ast.alias)
            ]
            assert not FORBIDDEN & set(names), f"{file}:{node.lineno}"
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in FORBIDDEN:
                harmless = (["UnpicklingError"], ["cpu_count"])
                assert names in harmless, f"{file}:{node.lineno}"
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called.rpartition(".")[2] not in UNSAFE_CALLS or called.endswith(".eval"), (
                f"{file}:{node.lineno}"
            )
            if called == "torch.load":
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True", f"{file}:{node.lineno}"


WAYS = {
    "callbacks": "  callbacks: {{x: {{_target_: shutil.copyfile, src: {own}, dst: {canary}}}}}\n",
    "job_logging": "  job_logging: {{filters: {{x: {{'()': shutil.copyfile, src: {own}, dst: {canary}}}}}}}\n",  # noqa: E501
    "hydra_logging": "  hydra_logging: {{filters: {{x: {{'()': shutil.copyfile, src: {own}, dst: {canary}}}}}}}\n",  # noqa: E501
}


@pytest.mark.parametrize("way", WAYS)
def test_a_configuration_builds_nothing_of_its_own(
    way: str, tmp_path: Path, canary: Path, hub_root: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"defaults: [train, _self_]\nhydra:\n{WAYS[way].format(own=own, canary=canary)}")
    done = command(
        "--config-dir",
        str(tmp_path),
        "--config-name",
        "own",
        f"hub.root={hub_root}",
        "logger=none",
        folder=tmp_path,
    )
    assert (done.returncode, canary.exists()) == (2, False), done.stderr
    assert done.stderr.startswith(f"error: own.yaml sets hydra.{way}.")
    assert "a file may not set this key" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_hydras_pickle_of_a_job_is_not_read(tmp_path: Path, canary: Path) -> None:
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(Bomb(canary)))
    done = command("--experimental-rerun", str(tmp_path / "config.pickle"), folder=tmp_path)
    assert (done.returncode, canary.exists()) == (2, False)
    assert "loads a pickle" in done.stderr
