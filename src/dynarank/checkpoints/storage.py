"""Checkpoints that survive: renamed when whole, valid only with a manifest that is written last.

    checkpoints/step-00000267.ckpt   torch's format, the trained part only
    checkpoints/step-00000267.json   its manifest: the sha256 of both, the step, and their run

A kill or a full disk at any moment leaves the earlier ones as they were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, Protocol

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from dynarank.durable_files import TEMPORARY, file_sha256, write_durably
from dynarank.errors import UserError, first_line

_STEP = "step-" + 8 * "[0-9]"
WEIGHTS, MANIFESTS, UNFINISHED = f"{_STEP}.ckpt", f"{_STEP}.json", f"{_STEP}.*{TEMPORARY}"
"""Patterns of the names of checkpoints, of their manifests, and of what killed writers leave. They
are narrow, so that no `step-100.ckpt` of another program is taken for one."""
FORMAT = 1
"""Of manifests. A version of dynarank reads the one that it writes."""
NEWER_FORMAT = "this version reads"
"""Words by which an error about another format is known."""


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
    """The run that it belongs to (`dynarank.checkpoints.identity.identity`)."""
    resumed_at: list[int]
    """Steps at which the run went on from a checkpoint."""
    inexact: list[str]
    """Differences that `resume.allow_inexact` let pass."""
    sha256: str = ""
    """Of the checkpoint."""
    bytes: int = 0
    """The checkpoint's size."""
    format: int = FORMAT
    own_sha256: str = ""
    """Of all of the above."""

    def digest(self) -> str:
        """Return what `own_sha256` must be."""
        content = json.dumps({**asdict(self), "own_sha256": ""}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


class CheckpointContent(Protocol):
    """What a run puts into a checkpoint beside what Lightning does, and how it takes it back."""

    def complete(self, checkpoint: dict[str, Any]) -> None:
        """Change what Lightning gathered into what is stored."""

    def take_back(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Change what is stored into what Lightning restores. Raises `UserError`."""


class DurableIO(CheckpointIO):
    """Lightning's way to the disk: checkpoints are written durably, and nothing in them is run.

    Args:
        content: what a checkpoint holds of a run; None where it is stored as it is given.
    """

    def __init__(self, content: CheckpointContent | None = None) -> None:
        self.content = content

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint. Raises `UserError` where the disk is full or fails."""
        if self.content is not None:
            self.content.complete(checkpoint)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _write(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return a checkpoint's content on the CPU. Raises `UserError` where it does not fit."""
        # Lightning's own weights_only does not count: nothing of a file is ever run.
        checkpoint = read_checkpoint(Path(path))
        if self.content is not None:
            self.content.take_back(checkpoint, Path(path))
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint's file."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content, on the CPU. Nothing in it is run.

    Raises:
        UserError: it holds more than tensors and plain values, or is none.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(
            f"{path}: is no checkpoint of dynarank, or holds what could run code, and is not "
            f"opened ({first_line(error)}). Take one that a run of yours wrote"
        ) from None
    return content


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a checkpoint's file durably. Raises `UserError` where it cannot be written."""
    try:
        write_durably(path, write)
    except (OSError, RuntimeError) as error:
        # torch's writer turns a full disk into a RuntimeError.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise UserError(
            f"the checkpoint {path} could not be written: {first_line(cause)}. The earlier ones "
            "are whole. Make room, and go on with resume=auto"
        ) from error


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}.ckpt"


def manifest_path(checkpoint: Path) -> Path:
    """Return where a checkpoint's manifest lies."""
    return checkpoint.with_suffix(".json")


def seal(path: Path, manifest: Manifest) -> None:
    """Write the manifest of a checkpoint that is on the disk: from now on it is valid."""
    manifest.sha256 = file_sha256(path)  # of what lies there, not of what was to be written
    manifest.bytes = path.stat().st_size
    manifest.own_sha256 = manifest.digest()
    content = json.dumps(asdict(manifest), indent=2).encode() + b"\n"
    _write(manifest_path(path), lambda file: file.write(content))


def verify(path: Path) -> Manifest:
    """Return the manifest of a checkpoint that is whole.

    Raises:
        DamagedCheckpoint: it is not whole; the message says what is wrong with it.
    """
    manifest = _read_manifest(path)
    if not path.is_file():
        raise DamagedCheckpoint(f"{path.name}: is missing")
    # The size first: it costs nothing, and tells of a file that was cut short.
    size = path.stat().st_size
    if size != manifest.bytes:
        raise DamagedCheckpoint(f"{path.name}: holds {size:,} of {manifest.bytes:,} bytes")
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise DamagedCheckpoint(f"{path.name}: cannot be read ({error.strerror})") from None
    if digest != manifest.sha256:
        raise DamagedCheckpoint(f"{path.name}: its content has changed (sha256)")
    return manifest


def _read_manifest(path: Path) -> Manifest:
    record = manifest_path(path)
    if not record.is_file():
        raise DamagedCheckpoint(f"{path.name}: was not finished (it has no manifest)")
    try:
        content = json.loads(record.read_text())
        stated_format = content["format"]
        # Another format may have other fields, and is told apart from damage.
        manifest = Manifest(**content) if stated_format == FORMAT else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise DamagedCheckpoint(f"{path.name}: its manifest {record.name} cannot be read") from None
    if manifest is None:
        raise DamagedCheckpoint(f"{path.name}: has format {stated_format}, {NEWER_FORMAT} {FORMAT}")
    if manifest.own_sha256 != manifest.digest():
        raise DamagedCheckpoint(f"{path.name}: its manifest {record.name} has changed (sha256)")
    return manifest


def newest_valid(folder: Path) -> tuple[Path | None, Manifest | None, list[str]]:
    """Find the newest whole checkpoint of a folder.

    Returns:
        its path and its manifest, None and None where there is none; and what is wrong with each
        of those that are newer.
    """
    # A manifest whose checkpoint is gone counts too, so that it is told of.
    stems = {path.stem for path in [*folder.glob(WEIGHTS), *folder.glob(MANIFESTS)]}
    skipped: list[str] = []
    for stem in sorted(stems, reverse=True):  # eight digits: in the order of the steps
        path = folder / f"{stem}.ckpt"
        try:
            return path, verify(path), skipped
        except DamagedCheckpoint as error:
            skipped.append(str(error))
    return None, None, skipped


def remove_all_but(folder: Path, steps: set[int]) -> None:
    """Remove checkpoints of other steps, and what killed writers left.

    Manifests go first, because a checkpoint without one is invalid.
    """
    kept = {checkpoint_path(folder, step).stem for step in steps}
    for pattern in (MANIFESTS, WEIGHTS, UNFINISHED):
        for path in folder.glob(pattern):
            # Not `path.stem`, which would leave the .ckpt of a name that ends in .ckpt.tmp.
            stem = path.name.partition(".")[0]
            # This process has none open, so a temporary file is of one that was killed.
            if stem not in kept or path.suffix == TEMPORARY:
                path.unlink(missing_ok=True)
