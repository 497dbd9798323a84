"""The train command's line: how a value is quoted, what is short for what, and how it goes on."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dynarank.errors import UserError
from dynarank.run_folder import CHECKPOINTS
from dynarank.settings import expand_user

# An experiment's file may set either of the two folders.
PLACES = ("hydra.run.dir=", "hydra.sweep.dir=", "experiment=")
"""Overrides that may name the run's folder."""


def quote(value: str | Path) -> str:
    """Return a value as Hydra's grammar takes it, in quotation marks where it needs them."""
    text = str(value)
    if re.fullmatch(r"[\w./-]+", text, re.ASCII):
        return text
    # In quotation marks Hydra reads backslashes as they are, but for those before such a mark.
    escaped = re.sub(r"(\\*)('|$)", _escape_mark, text)
    return f"'{escaped}'"


def _escape_mark(found: re.Match[str]) -> str:
    """Return a quotation mark, or the end of a text, with each backslash before it doubled."""
    backslashes, mark = found.groups()
    return 2 * backslashes + ("\\'" if mark else "")


def typed_setting(name: str, value: str | Path) -> str:
    """Return NAME=VALUE as it is typed in a shell, quoted for Hydra and for the shell."""
    return shlex.quote(f"{name}={quote(value)}")


def own_script() -> Path | None:
    """Return the script that this process was started by, a clone's train.py as a rule.

    The `dynarank` command and `python -m dynarank...` are none.
    """
    script = Path(sys.argv[0])
    package = Path(__file__).resolve().parents[1]
    is_script = script.suffix == ".py" and not script.resolve().is_relative_to(package)
    return script if is_script else None


def command_to_print() -> list[str]:
    """Return the words with which the user starts a run here, to be printed."""
    script = own_script()
    return ["dynarank", "train"] if script is None else ["python", str(script)]


def program_to_print() -> str:
    """Return how the `dynarank` command must be typed here, in whatever environment this is.

    It is its plain name only where a shell would find the one of this environment.
    """
    beside = Path(sys.executable).with_name("dynarank")
    found = shutil.which("dynarank")
    if found is not None and Path(found).absolute() == beside.absolute():
        return "dynarank"
    if not beside.is_file():
        return "dynarank" if found else "python -m dynarank"
    if beside.is_relative_to(Path.cwd()):
        beside = beside.relative_to(Path.cwd())
    return shlex.quote(str(beside))


def command_to_start() -> list[str]:
    """Return the words that start a run in a process of its own, on whatever folder it works."""
    script = own_script()
    if script is None:
        return [sys.executable, "-m", "dynarank.commands.train"]
    return [sys.executable, str(script.resolve())]


def expand_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `resume=X` spelled out and ~ in place of the home folder.

    Raises:
        UserError: as `expand_resume`.
    """
    return expand_resume([_expand_home(argument) for argument in arguments])


def _expand_home(argument: str) -> str:
    """Return `NAME=~/PATH` with the home folder in its place, quoted for Hydra.

    Shells leave this ~ as it is, and Hydra's grammar cannot read it.
    """
    name, sign, value = argument.partition("=")
    is_quoted = value[:1] == value[-1:] and value[:1] in ("'", '"')
    path = value[1:-1] if is_quoted else value
    if not sign or not re.match(r"~(/|$)", path):
        return argument
    return f"{name}={quote(expand_user(path))}"


def expand_resume(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `resume=X` spelled out as `resume.path=X`.

    Where X is a run's folder, or in one, the run goes on there.

    Raises:
        UserError: `resume=auto` names no folder; a new folder could never hold a checkpoint.
    """
    expanded = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "resume":
            expanded.append(f"resume.path={value}")
        else:
            expanded.append(argument)
    paths = []
    for argument in expanded:
        if argument.startswith("resume.path="):
            path = argument.removeprefix("resume.path=")
            # Quotation marks are Hydra's, and no part of the path.
            paths.append(path.strip("'\""))
    has_place = any(argument.startswith(PLACES) for argument in expanded)
    # The runs of a sweep have folders of their own, which Hydra names.
    if not paths or has_place or {"-m", "--multirun"} & set(expanded):
        return expanded
    if paths[-1] == "auto":
        raise UserError(
            "resume=auto goes on in the run's folder, and by default that is a new one. "
            "Name the folder: hydra.run.dir=DIR"
        )
    # Of several, Hydra takes the last.
    source = Path(paths[-1])
    is_checkpoint = source.suffix == ".ckpt" and source.parent.name == CHECKPOINTS
    folder = source.parent.parent if is_checkpoint else source
    if (folder / CHECKPOINTS).is_dir():
        expanded.append(f"hydra.run.dir={quote(folder)}")
    return expanded


def command_to_resume(arguments: Sequence[str], folder: Path | None) -> str:
    """Return the command line that continues, in `folder`, what the arguments began."""
    replaced = ("resume=", "resume.path=", "hydra.run.dir=")
    kept = [argument for argument in arguments if not argument.startswith(replaced)]
    place = [f"hydra.run.dir={quote(folder)}"] if folder else []
    return shlex.join([*command_to_print(), *kept, *place, "resume=auto"])
