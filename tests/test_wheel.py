"""The package works: built, installed in an environment of its own, used outside the clone.

The environment sees the packages of this one, so that none is installed again. Of dynarank it sees
the wheel alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import CONF, REPOSITORY, glue_rows

import dynarank

SOURCES = ("src", "conf", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
SOURCES += ("train.py", "constraints.txt", "CHANGELOG.md", "CITATION.cff")
TINY_RUN = ("task=cola", "trainer.epochs=1", "budget.interval=1", "logger=none")


@dataclass
class Installed:
    """An environment with the wheel, and a folder that is no clone's."""

    scripts: Path
    elsewhere: Path
    wheel: Path
    sdist: Path

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the folder elsewhere."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
        environment.pop("PYTHONPATH", None)  # it may name the clone's own src/
        program = self.scripts / words[0]
        return subprocess.run(
            [str(program), *words[1:]],
            cwd=self.elsewhere,
            env=environment,
            capture_output=True,
            text=True,
        )


def build(hook: str, folder: Path, target: Path) -> Path:
    """Call a hook of the build system in a process of its own, and return what it built."""
    script = f"from setuptools import build_meta\nprint(build_meta.{hook}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build the sdist of the clone and the wheel of the sdist, and install the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    copy, built, elsewhere = folder / "copy", folder / "dist", folder / "elsewhere"
    for made in (copy, built, elsewhere):
        made.mkdir()
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, copy / name, ignore=leave_out)
        else:
            shutil.copy(source, copy)
    sdist = build("build_sdist", copy, built)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    wheel = build("build_wheel", unpacked, built)
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    place = {"base": str(environment), "platbase": str(environment)}
    packages = Path(sysconfig.get_path("purelib", vars=place))
    # The path in this file is added as it is. The .pth files of editable installs are not read.
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install"]
    options = ["--quiet", "--no-index", "--no-deps", "--no-warn-script-location"]
    subprocess.run([*pip, *options, str(wheel)], check=True)
    return Installed(scripts, elsewhere, wheel, sdist)


def test_the_wheel_and_the_sdist_carry_the_configuration(installed: Installed) -> None:
    stated = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml"))
    names = zipfile.ZipFile(installed.wheel).namelist()
    carried = [name.removeprefix("dynarank/conf/") for name in names if "/conf/" in name]
    assert sorted(carried) == stated
    with tarfile.open(installed.sdist) as archive:
        members = [name.partition("/")[2] for name in archive.getnames()]
    packed = [name.removeprefix("conf/") for name in members if name.endswith(".yaml")]
    assert sorted(packed) == stated
    assert "dynarank/report/assets/page.html" in names
    assert "dynarank/py.typed" in names


def test_the_version_is_stated_once(installed: Installed) -> None:
    assert f"-{dynarank.__version__}-" in installed.wheel.name
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]
    assert "version" not in project
    done = installed.run("dynarank", "--version")
    assert done.stdout == f"dynarank {dynarank.__version__}\n"
    assert "\nversion:" not in (REPOSITORY / "CITATION.cff").read_text()


def test_dynarank_comes_from_the_wheel(installed: Installed) -> None:
    script = "import dynarank, torch; print(dynarank.__file__); print(torch.__file__)"
    own, shared = installed.run("python", "-c", script).stdout.splitlines()
    assert Path(own).is_relative_to(installed.scripts.parent)
    assert not Path(shared).is_relative_to(installed.scripts.parent)


@pytest.mark.parametrize("words", [("dynarank",), ("python", "-m", "dynarank")], ids=" ".join)
def test_the_command_is_there_in_both_spellings(
    words: tuple[str, ...], installed: Installed
) -> None:
    done = installed.run(*words, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: dynarank COMMAND" in done.stdout
    done = installed.run(*words, "train", "--help")
    assert done.returncode == 0, done.stderr
    assert "dynarank train task=cola budget=r8" in done.stdout


def test_it_trains_and_predicts_outside_the_clone(installed: Installed, hub_root: Path) -> None:
    hub = {"DYNARANK_HUB": str(hub_root)}
    done = installed.run("dynarank", "train", *TINY_RUN, "hydra.run.dir=run", **hub)
    assert done.returncode == 0, done.stderr
    run = installed.elsewhere / "run"
    record = json.loads((run / "metrics.json").read_text())
    assert record["at_budget"]
    assert record["versions"]["dynarank"] == dynarank.__version__
    rows = glue_rows("cola", 6, 1)["sentence"]
    (installed.elsewhere / "new.csv").write_text("sentence\n" + "\n".join(rows) + "\n")
    files = ("--input", "new.csv", "--output", "out.csv")
    done = installed.run("dynarank", "predict", "run", *files, **hub)
    assert done.returncode == 0, done.stderr
    assert len((installed.elsewhere / "out.csv").read_text().splitlines()) == 7
    done = installed.run("python", "-m", "dynarank.export", "run", "adapter", **hub)
    assert done.returncode == 0, done.stderr
    assert (installed.elsewhere / "adapter" / "adapter_config.json").is_file()


def test_a_users_own_groups_are_taken(installed: Installed, hub_root: Path) -> None:
    own = installed.elsewhere / "settings" / "budget"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("defaults:\n  - r2\n  - _self_\ntarget: 3\n")
    words = ["dynarank", "train", "--config-dir", "settings", *TINY_RUN, "budget=mine"]
    done = installed.run(*words, "--cfg", "job", DYNARANK_HUB=str(hub_root))
    assert done.returncode == 0, done.stderr
    assert "  target: 3\n" in done.stdout


def test_a_sweep_starts_its_runs_outside_the_clone(installed: Installed, hub_root: Path) -> None:
    words = ["dynarank", "train", "-m", "seed=1,2", *TINY_RUN, "hydra.sweep.dir=sweep"]
    done = installed.run(*words, DYNARANK_HUB=str(hub_root))
    assert done.returncode == 0, done.stderr
    finished = list((installed.elsewhere / "sweep").glob("*/metrics.json"))
    assert len(finished) == 2
    assert "train.py" not in done.stdout + done.stderr
