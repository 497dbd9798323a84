"""An adapter may come from anyone.

Each change to an honest one is refused with one error, and runs nothing.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import configure

from dynarank.adapters.adapter_checks import check_peft_adapter
from dynarank.commands.predict import main
from dynarank.errors import UserError
from dynarank.runs.run import run

FILES = {
    "dora": "adapter_model.safetensors",
    "prompt": "adapter_model.safetensors",
    "houlsby": "trained.safetensors",
    "full": "model.safetensors",
}


@pytest.fixture(scope="module")
def adapters(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An honest adapter of every form."""
    folders = {method: tmp_path_factory.mktemp(method) for method in FILES}
    for method, folder in folders.items():
        own = ["method.reserved=32"] if method == "prompt" else []
        run(
            configure(
                folder, hub_root, f"method={method}", "trainer.epochs=1", "budget.interval=1", *own
            )
        )
    return {method: folder / "adapter" for method, folder in folders.items()}


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def part(section: str, **changes: Any) -> Callable[[Path], None]:
    """A change to a part of dynarank.json."""

    def change(folder: Path) -> None:
        path = folder / "dynarank.json"
        origin = json.loads(path.read_text())
        origin[section].update(changes)
        path.write_text(json.dumps(origin))

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def not_finite(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def own(**changes: Any) -> Callable[[Path], None]:
    return edit("adapter_config.json", **changes)


HOSTILE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "imports by megatron": (
        "dora",
        own(megatron_config={"a": 1}, megatron_core="evil"),
        "megatron_config",
    ),
    "imports by class": (
        "dora",
        own(auto_mapping={"base_model_class": "x", "parent_library": "evil"}),
        "auto_mapping",
    ),
    "another kind": ("dora", own(peft_type="XLORA"), "peft_type = 'XLORA'"),
    "no kind": ("dora", own(peft_type=["LORA"]), "peft_type = "),
    "a revision": ("dora", own(revision="evil"), "revision = 'evil'"),
    "replicated layers": ("dora", own(layer_replication=[[0, 10**9]]), "layer_replication"),
    "a start from data": ("dora", own(init_lora_weights="eva"), "init_lora_weights"),
    "an unknown key": ("dora", own(evil=1), "evil = '1'"),
    "an endless expression": (
        "dora",
        own(target_modules="(a+)+$"),
        "target_modules must be a list",
    ),
    "an endless pattern": (
        "dora",
        own(rank_pattern={"^(a+)+$": 1}),
        "rank_pattern must map whole module names",
    ),
    "a huge rank": ("dora", own(r=10**9), "r = 1000000000: must be a whole number"),
    "a huge pattern": ("dora", own(rank_pattern={"^a": 10**9}), r"\^a = 1000000000"),
    "a text for a rank": ("dora", own(r="8"), "r = '8'"),
    "code of a tokenizer": (
        "prompt",
        own(prompt_tuning_init="TEXT", tokenizer_kwargs={"trust_remote_code": True}),
        "prompt_tuning_init",
    ),
    "huge prompts": ("prompt", own(num_virtual_tokens=10**9), "num_virtual_tokens = 1000000000"),
    "no weights": ("dora", lambda folder: (folder / FILES["dora"]).unlink(), "no such file"),
    "not finite": ("dora", not_finite, "not finite"),
    "no JSON": ("dora", write("adapter_config.json", b"{"), "cannot be read"),
    "no text": ("dora", write("adapter_config.json", b"\xff\xfe\x00"), "cannot be read"),
    "a list": ("dora", write("adapter_config.json", b"[]"), "must hold a JSON object, not a list"),
    "deep": ("dora", write("adapter_config.json", b'{"a":' * 10**5), "cannot be read"),
    "no record": ("dora", write("dynarank.json", b"{}"), "holds no task"),
    "a record of a list": ("dora", write("dynarank.json", b"[]"), "must hold a JSON object"),
    "an unknown family": ("dora", part("task", family="evil"), "task/evil: not known"),
    "a family of a list": ("dora", part("task", family=[]), "not known"),
    "an unknown setting": ("dora", part("model", evil=1), "model.evil"),
    "a number for a path": ("dora", part("model", path=1), "model.path = 1: must be a text"),
    "a text for a rate": ("dora", part("task", lr="x"), "not supported"),
    "columns of a list": ("dora", part("task", columns=[]), "'list' object"),
    "a name that leaves": ("dora", part("task", name="../x"), "task.name = '../x'"),
    "a method of its own": ("houlsby", part("method", name="evil"), "evil"),
    "a budget of texts": ("houlsby", part("budget", target="x"), "does not belong to"),
    "a base that is not there": (
        "dora",
        part("model", path="evil", found=None),
        "--base = evil: not found",
    ),
    "a dotted package": (
        "dora",
        part("model", path="package:os.path/x", found=None),
        "package:MODULE/FOLDER",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_adapter_is_one_error(
    case: str,
    adapters: dict[str, Path],
    hub_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    method, change, said = HOSTILE[case]
    folder = shutil.copytree(adapters[method], tmp_path / "adapter")
    change(folder)
    message = refused(folder, hub_root, tmp_path, capsys)
    assert re.search(said, message), message


def refused(folder: Path, hub_root: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What predict says when it ends with 2."""
    (place / "in.csv").write_text("sentence\na cat\n")
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                str(folder),
                "--input",
                str(place / "in.csv"),
                "--output",
                str(place / "o.csv"),
                "--hub-root",
                str(hub_root),
            ]
        )
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "error: " in message
    return message


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("method", FILES)
@pytest.mark.parametrize("kept", [True, False], ids=["in its place", "in the old form"])
def test_a_pickle_for_weights_does_not_run(
    kept: bool,
    method: str,
    adapters: dict[str, Path],
    hub_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, canary = shutil.copytree(adapters[method], tmp_path / "adapter"), tmp_path / "canary"
    name = FILES[method]
    (folder / name).unlink()
    old = {
        "adapter_model.safetensors": "adapter_model.bin",
        "model.safetensors": "pytorch_model.bin",
    }.get(name, "trained.bin")
    for write_it in (
        lambda path: path.write_bytes(pickle.dumps(Bomb(canary))),
        lambda path: torch.save(Bomb(canary), path),
    ):
        write_it(folder / (name if kept else old))
        refused(folder, hub_root, tmp_path, capsys)
        assert not canary.exists()


def test_honest_ones_are_let_through(
    adapters: dict[str, Path], hub_root: Path, tmp_path: Path
) -> None:
    for method in ("dora", "prompt"):
        check_peft_adapter(adapters[method])
    for method, folder in adapters.items():
        (tmp_path / "in.csv").write_text("sentence\na cat\n")
        main(
            [
                str(folder),
                "--input",
                str(tmp_path / "in.csv"),
                "--output",
                str(tmp_path / f"{method}.csv"),
                "--hub-root",
                str(hub_root),
            ]
        )


def test_an_adapter_without_its_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter_config\.json: cannot be read: FileNotFoundError"):
        check_peft_adapter(tmp_path)
