"""What a refused command leaves: nothing of its own, and everything of others."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import tiny

from dynarank.runs.refused_folder import remove_refused_folder


def hydras(folder: Path) -> Path:
    """Make a folder as Hydra leaves it for a run."""
    (folder / ".hydra").mkdir(parents=True)
    for name in (".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "train.log"):
        (folder / name).write_text("x")
    return folder


def test_the_folder_and_the_empty_ones_above_it_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = time.time() - 5
    other = hydras(tmp_path / "outputs/b/2")
    assert remove_refused_folder(hydras(tmp_path / "outputs/a/1"), before)
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["b"]
    assert remove_refused_folder(other, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["output.txt", "mine/notes.txt", ".hydra/more.yaml", "metrics.csv"]
)
def test_a_folder_with_anything_else_stays(name: str, tmp_path: Path) -> None:
    folder = hydras(tmp_path / "run")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    assert not remove_refused_folder(folder, time.time() - 5)
    assert (folder / name).is_file()
    assert (folder / ".hydra/config.yaml").is_file()


def test_what_an_earlier_command_left_stays(tmp_path: Path) -> None:
    folder = hydras(tmp_path / "run")
    os.utime(folder / "train.log", (0, 0))
    assert not remove_refused_folder(folder, time.time() - 5)
    assert (folder / "train.log").is_file()


def test_a_folder_elsewhere_goes_without_those_above_it(tmp_path: Path) -> None:
    assert remove_refused_folder(hydras(tmp_path / "a/run"), time.time() - 5)
    assert (tmp_path / "a").is_dir()
    assert not remove_refused_folder(tmp_path / "a/none", time.time())


def test_a_mistake_that_shows_late_leaves_nothing(tmp_path: Path, hub_root: Path) -> None:
    done = tiny.command("model.targets=[quary]", folder=tmp_path, DYNARANK_HUB=str(hub_root))
    assert done.returncode == 2
    assert "'quary' matches no linear layer" in done.stderr
    assert list(tmp_path.iterdir()) == []
