"""Checkpoints that survive: written beside their place, renamed when whole, valid only with a manifest written last.

    checkpoints/step-00000267.ckpt   torch's format, the trained part only; read with weights_only, so nothing in it is run
    checkpoints/step-00000267.json   its manifest: the sha256 of both, the step, and the run that they belong to

A kill or a full disk at any moment leaves the earlier ones as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from dynarank.errors import UserError

FORMAT = 1


class DamagedCheckpoint(ValueError):
    """A checkpoint that is not what was written: truncated, changed, or never finished."""


@dataclass
class Manifest:
    """What is known of a checkpoint without opening it."""

    step: int
    """Optimizer steps taken."""
    epoch: int
    """Epochs finished."""
    finished: bool
    """Whether training was over."""
    metrics_rows: int
    """Rows of metrics.csv that were written by then."""
    seconds: float
    """Of work until then, over all starts."""
    best: dict[str, Any] | None
    """Score, step and epoch of the best validation at budget so far."""
    identity: dict[str, Any]
    """The run that it belongs to (`dynarank.checkpoints.resume.identity`)."""
    resumed_at: list[int]
    """Steps at which the run went on from a checkpoint."""
    inexact: list[str]
    """Differences that `resume.allow_inexact` let pass."""
    sha256: str = ""
    bytes: int = 0
    format: int = FORMAT
    own_sha256: str = ""
    """Of all of the above."""

    def digest(self) -> str:
        """What `own_sha256` must be."""
        content = json.dumps({**asdict(self), "own_sha256": ""}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def write_durably(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that `path` holds its old content or the new one, whole, whenever the machine stops.

    The temporary file lies in the same folder, for a rename is atomic only within a file system.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class DurableIO(CheckpointIO):
    """Lightning's way to the disk, by `write_durably`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _write_or_say(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU; nothing in it is run.

    Raises:
        UserError: it holds more than tensors and plain values, or is none.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(
            f"{path}: is no checkpoint of dynarank, or holds what could run code, and is not opened "
            f"({str(error).splitlines()[0]}). Take one that a run of yours wrote"
        ) from None
    return content


def _write_or_say(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    try:
        write_durably(path, write)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        raise UserError(
            f"the checkpoint {path} could not be written: {_first_line(error)}. The earlier ones are whole. "
            "Make room, and go on with resume=auto"
        ) from error


def _first_line(error: Exception) -> str:
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    return str(cause).splitlines()[0]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}.ckpt"


def seal(path: Path, manifest: Manifest) -> None:
    """Write the manifest of a checkpoint that is on the disk: from now on it is valid."""
    manifest.sha256, manifest.bytes = _digest(path), path.stat().st_size
    manifest.own_sha256 = manifest.digest()
    content = json.dumps(asdict(manifest), indent=2).encode() + b"\n"
    _write_or_say(path.with_suffix(".json"), lambda file: void(file.write(content)))


def void(_: object) -> None:
    """Drop a value."""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path) -> Manifest:
    """The manifest of a checkpoint that is whole. Raises `DamagedCheckpoint`, saying what is wrong with it."""
    manifest = _read_manifest(path)
    if not path.is_file():
        raise DamagedCheckpoint(f"{path.name}: is missing")
    if path.stat().st_size != manifest.bytes:
        raise DamagedCheckpoint(
            f"{path.name}: holds {path.stat().st_size:,} of {manifest.bytes:,} bytes"
        )
    try:
        digest = _digest(path)
    except OSError as error:
        raise DamagedCheckpoint(f"{path.name}: cannot be read ({error.strerror})") from None
    if digest != manifest.sha256:
        raise DamagedCheckpoint(f"{path.name}: its content has changed (sha256)")
    return manifest


def _read_manifest(path: Path) -> Manifest:
    record = path.with_suffix(".json")
    if not record.is_file():
        raise DamagedCheckpoint(f"{path.name}: was not finished (it has no manifest)")
    try:
        content = json.loads(record.read_text())
        found = content["format"]
        manifest = Manifest(**content) if found == FORMAT else None
    except (OSError, ValueError, TypeError, KeyError):
        raise DamagedCheckpoint(f"{path.name}: its manifest {record.name} cannot be read") from None
    if manifest is None:
        raise DamagedCheckpoint(f"{path.name}: has format {found}, this version reads {FORMAT}")
    if manifest.own_sha256 != manifest.digest():
        raise DamagedCheckpoint(f"{path.name}: its manifest {record.name} has changed (sha256)")
    return manifest


def newest_valid(folder: Path) -> tuple[Path | None, Manifest | None, list[str]]:
    """The newest whole checkpoint of a folder, its manifest, and what is wrong with those newer than it."""
    skipped: list[str] = []
    stems = {
        path.stem for pattern in ("step-*.ckpt", "step-*.json") for path in folder.glob(pattern)
    }
    for stem in sorted(stems, reverse=True):
        path = folder / f"{stem}.ckpt"
        try:
            return path, verify(path), skipped
        except DamagedCheckpoint as error:
            skipped.append(str(error))
    return None, None, skipped


def remove_all_but(folder: Path, steps: set[int]) -> None:
    """Remove checkpoints of other steps, and what killed writers left. Manifests go first: half removed is invalid."""
    kept = {checkpoint_path(folder, step).stem for step in steps}
    for pattern in ("step-*.json", "step-*.ckpt", "*.tmp"):
        for path in folder.glob(pattern):
            if path.name.partition(".")[0] not in kept or path.suffix == ".tmp":
                path.unlink(missing_ok=True)
