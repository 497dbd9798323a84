"""The command `dynarank`: one word more says what to do."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from dynarank import __version__
from dynarank.commands.command_line import USER_ERROR
from dynarank.errors import nearest

COMMANDS = {
    "train": "fine-tune a model, or with -m a sweep of them",
    "predict": "predict new rows with a finished run",
    "evaluate": "score a labelled file with a finished run",
    "chat": "talk with a language model that was trained here",
    "export": "write a run as a plain PEFT adapter, or merged into its model",
    "compress": "make any PEFT LoRA adapter smaller, without training",
    "budget": "show what every method takes under a budget, without loading weights",
    "bench": "compare methods, each tuned alike, over tasks, budgets and seeds",
    "report": "compare runs: tables, statistics, pictures and a page",
    "doctor": "check whether this machine can train, and what",
}
"""What each command does. Each lives in the module dynarank.commands.NAME, as its `main`."""
HELP = ("-h", "--help", "help")
PROJECT_PACKAGES = ("dynarank", "hydra_plugins")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names. It exits with 2 for a user's mistake."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in HELP:
        print(usage())
        sys.exit(0 if words else USER_ERROR)  # help that was asked for is no mistake
    if words[0] == "--version":
        print(f"dynarank {__version__}")
        return
    if words[0] not in COMMANDS:
        print(f"error: {_unknown(words)}", file=sys.stderr)
        sys.exit(USER_ERROR)
    try:
        run(words[0], words[1:])
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in PROJECT_PACKAGES:  # a fault of ours, which keeps its trace
            raise
        print(f"error: {_not_installed(words[0], package)}", file=sys.stderr)
        sys.exit(USER_ERROR)


def run(command: str, arguments: list[str]) -> None:
    """Import a command, and run it. Nothing of the others is imported."""
    module = importlib.import_module(f"dynarank.commands.{command}")
    module.main(arguments)


def usage() -> str:
    """Return the help: what there is, and how to go on."""
    lines = [
        "Fine-tune language models with low-rank adapters whose ranks go where a task needs them.",
        "",
        "usage: dynarank COMMAND ...",
        "",
    ]
    for name, what in COMMANDS.items():
        lines.append(f"  {name:<10}{what}")
    lines += [
        "",
        "  dynarank train experiment=quickstart    # needs no hub and no account",
        "  dynarank COMMAND --help                 # what a command takes",
        "  dynarank --version",
    ]
    return "\n".join(lines)


def _unknown(words: list[str]) -> str:
    """Return what to say of a first argument that is no command."""
    first = words[0]
    is_setting = "=" in first or first in ("-m", "--multirun")
    if is_setting:
        return f"{first} is no command. Settings belong to train: dynarank train {first} ..."
    return f"{first} is no command. {nearest(first, COMMANDS)}"


def _not_installed(command: str, package: str) -> str:
    """Return how to install what a command lacks."""
    return (
        f"dynarank {command} needs the package {package}, which is not installed. Install all that "
        "training needs: pip install 'dynarank[train]'"
    )
