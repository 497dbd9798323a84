"""Files that hold their old content or the new one, whole, whenever the machine stops."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from dynarank.errors import UserError

CACHE = "DYNARANK_CACHE"
"""The environment's variable that names `cache_folder`."""
TEMPORARY = ".tmp"
"""The end of the name of a file that is being written. A killed process may leave one."""


def write_durably(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that `path` holds its old content or the new one, whole, at any moment.

    The temporary file lies in the same folder, because a rename is atomic only within one file
    system.

    Args:
        path: of the file.
        write: called with the open temporary file.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            # The rename may reach the disk before the data does. Without this, a machine that stops
            # then would leave an empty file under the final name.
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # also a signal: Interrupted is no Exception
        temporary.unlink(missing_ok=True)
        raise
    # The new name is an entry of the folder, and is on the disk only once the folder is.
    sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes durably."""
    write_durably(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Write a text durably, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write a value durably as JSON. Null stands for a number that is not finite."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """Return a value as indented JSON text, with null for a number that is not finite."""
    return json.dumps(without_nan(content), indent=2) + "\n"


def without_nan(content: Any) -> Any:
    """Return a value of lists, dicts and numbers with None for each number that is not finite.

    JSON has no NaN and no infinity.
    """
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return content


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Have the disk hold a folder's present names. Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    # A folder cannot be opened for writing, and fsync does not ask for it.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_readable(folder: Path, also_folder: bool = False) -> None:
    """Give a folder's files the rights that any new file gets: safetensors' own are private.

    Not for folders that another thread writes into: the process's mask is read by setting it.

    Args:
        also_folder: whether the folder itself gets those of a new folder: mkdtemp's is private.
    """
    mask = os.umask(0)
    os.umask(mask)
    if also_folder:
        folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def made_cache(folder: Path, variable: str, to_write: bool = True) -> Path:
    """Make a cache's folder, and return it.

    Args:
        folder: the cache's.
        variable: of the environment, by which the user names another place.
        to_write: whether something is written there now. What lies there may be read only.

    Raises:
        UserError: it cannot be made, or written.
    """
    reason = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
    if reason is None and to_write and not os.access(folder, os.W_OK):
        reason = "no right to write"
    if reason is not None:
        raise UserError(
            f"{folder}: this cache cannot be written ({reason}). Name another place in the "
            f"environment: {variable}=DIR"
        )
    return folder


def cache_folder() -> Path:
    """Return where what was fetched or unpacked is kept: $DYNARANK_CACHE, or ~/.cache/dynarank."""
    # An empty variable counts as none: as a path it would be the working folder.
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "dynarank")
