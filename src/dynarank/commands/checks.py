"""A finding about this machine, as the doctor reports it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

OK = "ok"
NOTE = "note"
"""It is worth knowing, and ends no run."""
FAIL = "fail"
"""It will end a run."""


@dataclass
class Check:
    """One line of the doctor's report."""

    name: str
    status: str
    """OK, NOTE or FAIL."""
    found: str
    """What is there, in a few words."""
    remedy: str = ""
    """What to do about it: a command where there is one."""


def install_command() -> str:
    """Return the command that installs what training needs: for a clone, or for a package."""
    repository = Path(__file__).resolve().parents[3]
    if (repository / "constraints.txt").is_file():
        return "pip install -c constraints.txt -e '.[train]'"
    return "pip install 'dynarank[train]'"
