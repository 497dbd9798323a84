"""The help of the train command, in one screen, made without Hydra so that it appears at once."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from dynarank.config.command_line import command_to_print
from dynarank.config.folders import conf_folder

GROUPS = {
    "model": "what to adapt",
    "task": "to what",
    "method": "how",
    "budget": "with how many components",
    "dem": "with which variance penalty",
    "trainer": "on what device, in which precision",
    "logger": "seen where",
    "experiment": "a file that sets all of the above",
    "scale": "of an experiment: as the paper, or small",
}
"""The groups of conf/, in the order of train.yaml, and what each decides."""
WIDTH = 100


def help_text(arguments: Sequence[str]) -> str:
    """Return the help: the overview, or with `settings` among the arguments every setting."""
    if "settings" in arguments:
        from dynarank.config.describe import as_text

        return as_text()
    folders = [conf_folder(), *_user_folders(arguments)]
    command = " ".join(command_to_print())
    lines = [
        "Fine-tune a language model with low-rank adapters whose ranks go where the task needs",
        "them.",
        "",
        f"  {command} task=cola budget=r8",
        f"  {command} -m dem.eta=0,0.1 budget.init=2,4,8    (a run for each pair of values)",
        f"  {command} experiment=quickstart                 (needs no hub)",
        "",
        "Groups, GROUP=CHOICE:",
    ]
    for group in group_names(folders):
        meaning = f" ({GROUPS[group]})" if group in GROUPS else ""
        text = f"{group}{meaning}: {', '.join(group_choices(folders, group))}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="      ")
    lines += [
        "",
        "Settings, NAME=VALUE, as optimizer.lr=1e-3:",
        f"  {command} --help settings    lists each with its type, default and meaning.",
        f"  {command} OVERRIDES --cfg job    prints the values of a run without starting it.",
        "Files of your own: --config-dir DIR, where DIR/task/mine.yaml becomes task=mine.",
        "Hydra's own options: --hydra-help.",
    ]
    return "\n".join(lines)


def group_names(folders: Sequence[Path]) -> list[str]:
    """Return the groups in configuration folders, the known ones first."""
    names: set[str] = set()
    for folder in folders:
        names.update(entry.name for entry in folder.iterdir() if entry.is_dir())
    # A folder hydra/ holds choices of Hydra's own, as launchers.
    own = sorted(name for name in names - set(GROUPS) if not name.startswith((".", "_", "hydra")))
    return [name for name in GROUPS if name in names] + own


def group_choices(folders: Sequence[Path], group: str) -> list[str]:
    """Return the names of a group's files in configuration folders."""
    names: set[str] = set()
    for folder in folders:
        names.update(file.stem for file in (folder / group).glob("*.yaml"))
    return sorted(names)


def _user_folders(arguments: Sequence[str]) -> list[Path]:
    """Return the folders that --config-dir names, where they exist."""
    paths = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, sign, value = argument.partition("=")
        if name not in ("--config-dir", "-cd"):
            continue
        # Either --config-dir=FOLDER, or --config-dir FOLDER.
        folder = value if sign else following
        paths.append(Path(folder))
    return [path for path in paths if path.is_dir()]
