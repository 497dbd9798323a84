"""Imports run one way: a room imports only rooms before it, lazily and for types too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import REPOSITORY

PACKAGE = REPOSITORY / "src" / "dynarank"
ROOMS = (
    "ground",
    "adapters",
    "allocation",
    "integrations",
    "pretrained",
    "tasks",
    "methods",
    "config",
    "training",
    "checkpoints",
    "runs",
    "sweeps",
    "report",
    "commands",
)
"""Bottom floor first."""
GROUND = ("errors", "registry", "durable_files", "run_folder", "settings", "rounding")
"""Modules of the package's top that every room may import."""
ENTRIES = (
    "__main__.py",
    "budget.py",
    "doctor.py",
    "evaluate.py",
    "export.py",
    "predict.py",
    "report/__main__.py",
)
"""Older spellings of commands: each is a few lines into commands/."""
VERSION = "dynarank.__version__"
"""The one name of the package's own that its rooms may import."""
BARE = ("adapters", "allocation")
"""Rooms whose modules need torch alone to be imported."""
LAZY = {"peft", "safetensors"}
"""What a function of theirs may import beside torch."""


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that is imported, anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def room_of(dotted: str) -> str | None:
    """The room of one of the package's modules; None where the name is the package's own."""
    parts = dotted.split(".")[1:]
    if (
        not parts
        or not (PACKAGE / parts[0]).with_suffix(".py").is_file() | (PACKAGE / parts[0]).is_dir()
    ):
        return None
    return "ground" if parts[0] in GROUND else parts[0]


def own_room(path: Path) -> str | None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[0] in GROUND:
        return "ground"
    return parts[0] if parts[0] in ROOMS else None


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_before_it(path: Path) -> None:
    if str(path.relative_to(PACKAGE)) in ENTRIES:
        return
    room = own_room(path)
    floor = ROOMS.index(room) if room else ROOMS.index("allocation")  # dynarank/__init__.py
    wrong = []
    for line, name in imports(ast.parse(path.read_text())):
        if name.split(".")[0] != "dynarank" or name == VERSION:
            continue
        # The package's own names are those of its library: adapters/ and allocation/.
        other = room_of(name) or "allocation"
        if ROOMS.index(other) > floor:
            wrong.append(f"line {line}: {name}")
        if room == "integrations" and other not in ("ground", "adapters", "allocation", room):
            wrong.append(f"line {line}: {name}")
    assert wrong == []


def test_every_module_has_a_room() -> None:
    roomless = [path for path in files() if own_room(path) is None]
    tops = {str(path.relative_to(PACKAGE)) for path in roomless}
    assert tops <= {"__init__.py", *ENTRIES}


@pytest.mark.parametrize("room", BARE)
def test_the_library_needs_torch_alone(room: str) -> None:
    wrong = []
    for path in sorted((PACKAGE / room).rglob("*.py")):
        tree = ast.parse(path.read_text())
        eager = set()
        for statement in tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                eager |= {name for _, name in imports(statement)}
        for line, name in imports(tree):
            top = name.split(".")[0]
            known = top in sys.stdlib_module_names or top in ("torch", "dynarank")
            if not known and (name in eager or top not in LAZY):
                wrong.append(f"{path.name} line {line}: {name}")
    assert wrong == []
