"""Which checkpoint a run goes on from, and what comes along where that lies in another folder."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dynarank.checkpoints.storage import (
    MANIFESTS,
    NEWER_FORMAT,
    WEIGHTS,
    DamagedCheckpoint,
    Manifest,
    checkpoint_path,
    manifest_path,
    newest_valid,
    verify,
)
from dynarank.durable_files import write_durably
from dynarank.errors import UserError
from dynarank.run_folder import CHECKPOINTS, is_finished
from dynarank.training.distributed import is_first

log = logging.getLogger(__name__)

AUTO, NEVER = "auto", "never"


@dataclass
class Resumption:
    """A checkpoint to go on from."""

    path: Path
    manifest: Manifest

    def is_in(self, folder: Path) -> bool:
        """Return whether it is one of the run's own, in that folder."""
        return self.path.parent.resolve() == (folder / CHECKPOINTS).resolve()


def find_resumption(path: str | None, folder: Path) -> Resumption | None:
    """Return the checkpoint that `resume.path` means, or None where the run begins anew.

    Args:
        path: `auto`, the newest whole one in the run's folder; `never`; a folder or a checkpoint;
            or None.
        folder: the run's.

    Raises:
        UserError: there is nothing at the path, or all is damaged; or the folder holds an
            unfinished run that would be lost.
    """
    if path == NEVER:
        _refuse_to_lose_newer(folder)
        return None
    if path is None:
        _refuse_to_lose(folder)
        return None
    if "://" in path:
        raise UserError(
            f"resume = {path}: checkpoints are read from disk only, for one from elsewhere is not "
            "to be trusted"
        )
    named = folder / CHECKPOINTS if path == AUTO else Path(path)
    checkpoints = _checkpoints_folder(named)
    # A run that goes on from elsewhere replaces what this folder holds.
    if checkpoints.resolve() != (folder / CHECKPOINTS).resolve():
        _refuse_to_lose(folder)
    if named.is_file():
        return _named_checkpoint(named, folder)
    if not named.is_dir() and path != AUTO:
        raise UserError(
            f"resume = {path}: there is no such file or folder. Name a run's folder or a .ckpt "
            "in it"
        )
    return _newest_checkpoint(path, checkpoints)


def _checkpoints_folder(named: Path) -> Path:
    """Return the folder of checkpoints that a checkpoint, a run's folder, or itself stands for."""
    if named.is_file():
        return named.parent
    inside = named / CHECKPOINTS
    return inside if inside.is_dir() else named


def _newest_checkpoint(path: str, checkpoints: Path) -> Resumption | None:
    """Return the newest whole checkpoint of a folder; None where `auto` finds an empty one."""
    newest, manifest, skipped = newest_valid(checkpoints)
    for reason in skipped:
        log.warning("skipped a checkpoint: %s", reason)
    if newest is not None and manifest is not None:
        log.info("resuming from %s (step %d)", newest, manifest.step)
        return Resumption(newest, manifest)
    # For `auto` alone: what a command names is never renamed.
    if path == AUTO and _set_first_save_aside(checkpoints):
        return None
    if skipped:
        raise UserError(
            f"resume = {path}: no checkpoint in {checkpoints} is whole ({skipped[0]}). "
            "Start over with resume=never"
        )
    if path != AUTO:
        raise UserError(f"resume = {path}: there is no checkpoint in {checkpoints}")
    if is_finished(checkpoints.parent):
        raise UserError(
            f"{checkpoints.parent} holds a finished run without its checkpoints, so that nothing "
            "tells whether it is this one. Choose another: hydra.run.dir=DIR, or replace it with "
            "resume=never"
        )
    return None


def _set_first_save_aside(checkpoints: Path) -> bool:
    """Rename the only checkpoint of a folder, if no manifest was ever written, and say so.

    So a run looks that was killed in its first save. It can only begin anew. The file is kept,
    because a manifest that somebody has removed looks the same.
    """
    weights = list(checkpoints.glob(WEIGHTS))
    if len(weights) != 1 or any(checkpoints.glob(MANIFESTS)):
        return False
    aside = weights[0].with_name(f"unfinished-{weights[0].name}")
    weights[0].replace(aside)
    log.warning(
        "the run was killed in its first save, so that it begins anew; what was saved is kept as "
        "%s, which nothing reads",
        aside,
    )
    return True


def _named_checkpoint(path: Path, folder: Path) -> Resumption:
    try:
        named = Resumption(path, verify(path))
    except DamagedCheckpoint as error:
        raise UserError(
            f"resume = {path}: {error}. resume={path.parent} takes the newest that is whole"
        ) from None
    usual = checkpoint_path(path.parent, named.manifest.step)
    if named.is_in(folder) and path.name != usual.name:
        raise UserError(
            f"resume = {path}: in its own folder a run finds checkpoints by their names alone. "
            f"Call it {usual.name}, and the file beside it {manifest_path(usual).name}; or go on "
            "in another folder: hydra.run.dir=DIR"
        )
    return named


def _refuse_to_lose(folder: Path) -> None:
    """Raise `UserError` where the folder holds a run, finished or not.

    The first process alone looks: a launcher starts the others once it has begun there.
    """
    if not is_first():
        return
    if is_finished(folder):
        raise UserError(
            f"{folder} holds a finished run. Keep it and choose another: hydra.run.dir=DIR, or "
            "replace it with resume=never"
        )
    newest, manifest, skipped = newest_valid(folder / CHECKPOINTS)
    if newest is not None and manifest is not None:
        raise UserError(
            f"{folder} holds an unfinished run, saved at step {manifest.step}. Go on with "
            "resume=auto, or start over with resume=never, which removes it"
        )
    if skipped:
        raise UserError(
            f"{folder} holds an unfinished run, whose checkpoints cannot be used ({skipped[0]}). "
            "Restore them, or start over with resume=never, which removes it"
        )


def _refuse_to_lose_newer(folder: Path) -> None:
    """Raise `UserError` where a newer version's checkpoints would be removed, unread."""
    _, _, skipped = newest_valid(folder / CHECKPOINTS)
    for reason in skipped:
        if NEWER_FORMAT in reason:
            raise UserError(
                f"{folder} holds checkpoints that another version of dynarank wrote ({reason}). "
                "Move them away, or choose another folder: hydra.run.dir=DIR"
            )


def copy_run(resumption: Resumption, folder: Path) -> None:
    """Copy what a run will need again from the folder of the one it goes on from.

    That is the checkpoint itself, which holds the history, and its best one.
    """
    source, target = resumption.path.parent, folder / CHECKPOINTS
    steps = {resumption.manifest.step}
    if resumption.manifest.best is not None:
        steps.add(resumption.manifest.best["step"])
    target.mkdir(exist_ok=True)
    for step in steps:
        copied = checkpoint_path(target, step)
        checkpoint = checkpoint_path(source, step)
        if step == resumption.manifest.step:
            checkpoint = resumption.path  # which may have another name
        # In this order, because the manifest says that the checkpoint is whole.
        files = ((checkpoint, copied), (manifest_path(checkpoint), manifest_path(copied)))
        for path, place in files:
            # The best one may be gone. The run's end then takes the last weights.
            if path.is_file():
                with path.open("rb") as original:
                    write_durably(place, partial(shutil.copyfileobj, original))
