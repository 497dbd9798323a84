"""What a user can mend, and the nearest known name to one that is not known."""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """A mistake of the user's or of the surroundings.

    The message names the field, its value and the remedy.
    """


# No slash and no dot at the start, so that a folder of that name is neither elsewhere nor hidden.
PLAIN_NAME = re.compile(r"\w[\w.+=@ -]{0,95}")


def check_name(field: str, name: str) -> None:
    """Raise `ValueError` for a name that cannot stand in a folder's name, a table and a tracker."""
    # Hydra has not filled such a value in yet. The filled one is checked when its turn comes.
    unresolved = name == "???" or name.startswith("${")
    if not unresolved and not PLAIN_NAME.fullmatch(name):
        raise ValueError(
            f"{field} = {name[:99]!r}: must be 1 to 96 letters, digits or . _ + = @ -, "
            "a letter or digit first"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence for an error about an unknown name.

    It names the nearest known ones, or all of them where none is near.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    return f"Known: {', '.join(known)}"


class Interrupted(BaseException):
    """A signal ended the run.

    It is no `Exception`, as KeyboardInterrupt is none: it may be raised anywhere, and nobody's
    `except Exception` may take it. `code` is the process's exit code: 130 after Ctrl-C, 143 after
    SIGTERM and SIGUSR1.
    """

    def __init__(self, number: signal.Signals, saved: str | None = None) -> None:
        super().__init__(f"stopped by {number.name}" + (f"; saved: {saved}" if saved else ""))
        self.folder: Path | None = None
        """The run's folder, where it goes on."""
        # As shells count: 128 and the number of SIGINT or of SIGTERM.
        self.code = 130 if number is signal.SIGINT else 143


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def kind_and_first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message, as Python prints them."""
    kind = type(error).__name__
    return f"{kind}: {first_line(error)}" if str(error).strip() else kind
