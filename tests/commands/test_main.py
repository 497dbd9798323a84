"""The command `dynarank`: what it offers, and how it answers to what it does not know."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import dynarank
from dynarank.commands import main as front_door
from dynarank.commands.main import COMMANDS, main

FRAMEWORK = ("torch", "numpy", "lightning", "hydra", "transformers", "datasets", "peft", "rich")
TABLES = ("pandas", "scipy", "matplotlib")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the command says where it refuses its arguments."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    shown = capsys.readouterr()
    return shown.err + shown.out


def test_the_version_is_the_librarys(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"dynarank {dynarank.__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["-h"], ["help"]):
        with pytest.raises(SystemExit, match="0"):
            main(words)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) < 24
        assert max(map(len, lines)) <= 100
        for name, what in COMMANDS.items():
            assert f"  {name:<10}{what}" in lines
    assert "usage: dynarank COMMAND" in refused([], capsys)


def test_a_mistyped_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "trian is no command. Did you mean 'train'?" in refused(["trian"], capsys)
    assert "dynarank train task=cola" in refused(["task=cola"], capsys)
    assert "Known: train, predict" in refused(["xyzzy"], capsys)


def test_a_command_gets_the_rest_of_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, list[str]]] = []

    def import_module(name: str) -> SimpleNamespace:
        return SimpleNamespace(main=lambda arguments: given.append((name, arguments)))

    monkeypatch.setattr(front_door, "importlib", SimpleNamespace(import_module=import_module))
    main(["report", "DIR", "--last"])
    assert given == [("dynarank.commands.report", ["DIR", "--last"])]


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def import_module(name: str) -> None:
        raise ModuleNotFoundError("No module named 'lightning'", name="lightning.pytorch")

    monkeypatch.setattr(front_door, "importlib", SimpleNamespace(import_module=import_module))
    said = refused(["predict"], capsys)
    assert "needs the package lightning" in said
    assert "pip install 'dynarank[train]'" in said


def test_a_fault_of_our_own_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        raise ModuleNotFoundError("No module named 'dynarank.gone'", name="dynarank.gone")

    monkeypatch.setattr(front_door, "importlib", SimpleNamespace(import_module=import_module))
    with pytest.raises(ModuleNotFoundError, match="gone"):
        main(["predict"])


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["predict", "--help"],
        ["evaluate", "--help"],
        ["export", "--help"],
        ["doctor", "--help"],
        ["report", "--help"],
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    script = (
        "import sys\nfrom dynarank.commands.main import main\n"
        f"try:\n    main({words})\nexcept SystemExit:\n    pass\n"
        "print('loaded:', *(name for name in sys.modules if '.' not in name))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.splitlines()[-1].split()
    assert loaded[0] == "loaded:"
    assert not {*FRAMEWORK, *TABLES} & set(loaded)
    if len(words) == 2:
        assert f"usage: dynarank {words[0]}" in done.stdout


def test_every_command_is_a_module_with_a_main() -> None:
    for name in COMMANDS:
        if importlib.util.find_spec(f"dynarank.commands.{name}") is not None:
            assert callable(importlib.import_module(f"dynarank.commands.{name}").main)
