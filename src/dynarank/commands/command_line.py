"""What all commands have in common: their parser, their errors, and the files that they write."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from dynarank.config.redaction import redact
from dynarank.durable_files import sync_folder
from dynarank.errors import UserError
from dynarank.settings import expand_user

USER_ERROR = 2
"""The exit code of a command that its user called in a wrong way."""
INTERRUPTED = 130
"""The exit code after Ctrl-C."""


class CommandParser(argparse.ArgumentParser):
    """A parser whose help keeps the line breaks of its text, and whose errors show no secret."""

    def __init__(self, command: str, description: str | None, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"dynarank {command}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with 2."""
        super().error(redact(message))


def user_path(text: str) -> Path:
    """Return the path that a user typed; a leading ~ is the home folder, as everywhere.

    Shells leave it as it is in `--output=~/x.csv`.
    """
    return Path(expand_user(text))


def add_hub_root(parser: argparse.ArgumentParser) -> None:
    """Add the option that names a local copy of the hub."""
    parser.add_argument(
        "--hub-root",
        metavar="DIR",
        default=os.environ.get("DYNARANK_HUB"),
        help="a folder with models/ and datasets/, looked at first (default: $DYNARANK_HUB)",
    )


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a `UserError` into one message without secrets, and exit code 2."""
    # Where it is installed, PEFT imports it, and it tells of a kernel that nobody asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        yield
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def refuse_existing(
    option: str, path: Path, overwrite: bool, inputs: tuple[Path, ...] = ()
) -> None:
    """Raise `UserError` where a file that is to be written is there already.

    Args:
        option: the command's option that named the file, for the message.
        overwrite: whether an existing file may be replaced. One of `inputs` never may.
    """
    for source in inputs:
        # A link or another spelling may name the input too.
        if path.exists() and source.exists() and path.samefile(source):
            raise UserError(f"{option} {path}: is the command's own input. Name another file")
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder. Name a file")
    if path.exists() and not overwrite:
        raise UserError(
            f"{option} {path}: is there already. Name another file, or replace it by --overwrite"
        )


def make_folder(option: str, folder: Path) -> None:
    """Make a folder that files will be written into, and write into it once.

    Raises:
        UserError: it cannot be made, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: {folder} cannot be made ({error.strerror})") from None
    check_writable(f"{option}: {folder}", folder)


def refuse_bad_folder(out: Path) -> None:
    """Raise `UserError` where a new folder is there already and not empty, or cannot be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already. Name a new folder")
    check_place(str(out), out)


def check_place(field: str, folder: Path) -> None:
    """Raise `UserError` where files could not be written into a folder, which may not be there yet.

    Args:
        field: what the user gave, for the message.
    """
    above = folder.absolute()
    while not above.exists():
        above = above.parent
    check_writable(field, above)


def check_writable(field: str, folder: Path) -> None:
    """Write into a folder once, and leave nothing there. Raises `UserError` where that fails.

    Args:
        field: what the user gave, for the message.
    """
    try:
        # os.access is not enough: where it says yes, a write may fail, as on a network drive.
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{field} cannot be written ({error.strerror}). Name another folder"
        ) from None


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give a file to write into, which becomes `path` once it is whole and on the disk.

    However the machine stops, `path` holds its old content or the new one. The file lies in a
    folder beside `path`, because a rename is atomic only within a file system. Its permissions are
    the usual ones of a new file (0644 under the usual umask).
    """
    # A folder, because a temporary file of Python's would be readable by its owner alone.
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    # The new name is a change of the folder, which a stop of the machine could undo.
    sync_folder(path.parent)
