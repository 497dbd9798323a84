"""Going on where a run stopped: which checkpoint, whether it is this run's, and the state of the random generators."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dynarank.checkpoints.storage import (
    DamagedCheckpoint,
    Manifest,
    checkpoint_path,
    newest_valid,
    verify,
)
from dynarank.config.schema import TrainConfig
from dynarank.errors import UserError
from dynarank.runs.record import package_versions
from dynarank.training.distributed import is_first

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

LENGTH = (
    "trainer.batch_size",
    "trainer.accumulate",
    "trainer.epochs",
    "trainer.max_steps",
    "total_steps",
)
FIXED = ("model", "task", "method", "budget", "dem", "data", "base_weights", *LENGTH)
"""What a run cannot change and stay itself. Anything else that differs makes a resume inexact."""
FREE = (
    *("output_dir", "logger", "hub", "sweep", "resume", "checkpoint"),
    *("trainer.workers", "trainer.max_time", "trainer.gradient_checkpointing"),
)
"""What does not enter a run's numbers."""


@dataclass
class Resumption:
    """A checkpoint to go on from."""

    path: Path
    manifest: Manifest


def identity(config: TrainConfig, **found: Any) -> dict[str, Any]:
    """What a run is, by dotted name: its settings, its place, and what else is `found` (digests, total_steps)."""
    flat = _flatten(asdict(config))
    kept = {
        name: value for name, value in flat.items() if not any(_below(name, free) for free in FREE)
    }
    place = {
        **(
            {"threads": torch.get_num_threads()} if is_first() else {}
        ),  # launchers give other ranks fewer
        "device": _device_name(config.trainer.accelerator),
        **{f"versions.{name}": version for name, version in package_versions().items()},
    }
    if kept.get("task.labels") is None:  # the data says them, once it is read
        kept.pop("task.labels", None)
    resolved = {
        "optimizer.lr": config.lr,
        "trainer.batch_size": config.batch_size,
        "trainer.epochs": config.epochs,
    }
    plain: dict[str, Any] = json.loads(json.dumps({**kept, **resolved, **place, **found}))
    return plain


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= (
            _flatten(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {prefix + name: value}
        )
    return flat


def _below(name: str, group: str) -> bool:
    return name == group or name.startswith(group + ".")


def _device_name(accelerator: str) -> str:
    if torch.cuda.is_available() and accelerator in ("auto", "gpu"):
        return torch.cuda.get_device_name()
    return (
        "mps"
        if torch.backends.mps.is_available() and accelerator in ("auto", "mps")
        else platform.machine()
    )


def differences(theirs: dict[str, Any], mine: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What differs between two identities, in words: what no resume survives, and what makes it inexact.

    Only what both know is compared, so that the settings can be checked before anything is loaded.
    """
    fixed: list[str] = []
    rest: list[str] = []
    for name in theirs.keys() & mine.keys():
        if theirs[name] != mine[name]:
            said = f"{name} was {theirs[name]}, is {mine[name]}"
            (fixed if any(_below(name, one) for one in FIXED) else rest).append(said)
    return sorted(fixed, key=lambda said: (".name was " not in said, said)), sorted(
        rest
    )  # a name says most


def check_identity(resumption: Resumption, mine: dict[str, Any], allow_inexact: bool) -> None:
    """Record in the manifest what is inexact, if that is allowed. Raises `UserError` where this is another run."""
    fixed, rest = differences(resumption.manifest.identity, mine)
    if fixed:
        raise UserError(
            f"{resumption.path}: is of another run: {_and_more(fixed)}. Give its settings, or another hydra.run.dir"
        )
    if rest and not allow_inexact:
        raise UserError(
            f"{resumption.path}: the run would not go on exactly as it began: {_and_more(rest)}. "
            "Restore that, or accept it with resume.allow_inexact=true"
        )
    for difference in rest:
        said = f"step {resumption.manifest.step}: {difference}"
        if said not in resumption.manifest.inexact:
            log.warning("resumed inexactly: %s", difference)
            resumption.manifest.inexact.append(said)


def _and_more(found: list[str]) -> str:
    return found[0] if len(found) == 1 else f"{found[0]} ({len(found)} differ)"


def find_resumption(path: str | None, folder: Path) -> Resumption | None:
    """The checkpoint that `resume.path` means: `auto`, the newest whole one in the run's folder; or a path.

    Raises:
        UserError: there is nothing at the path, or all is damaged; or the folder holds an unfinished run that would be
            lost.
    """
    checkpoints = folder / "checkpoints"
    if path is None or path == "never":
        if path is None:
            _refuse_to_lose(folder)
        return None
    if "://" in path:
        raise UserError(
            f"resume = {path}: checkpoints are read from disk only, for one from elsewhere is not to be trusted"
        )
    named = checkpoints if path == "auto" else Path(path)
    inside = (
        named.parent
        if named.is_file()
        else named / "checkpoints"
        if (named / "checkpoints").is_dir()
        else named
    )
    if inside.resolve() != checkpoints.resolve():
        _refuse_to_lose(folder)
    if named.is_file():
        return _exactly(named)
    if not named.is_dir() and path != "auto":
        raise UserError(
            f"resume = {path}: there is no such file or folder. Name a run's folder or a .ckpt in it"
        )
    newest, manifest, skipped = newest_valid(inside)
    for reason in skipped:
        log.warning("skipped a checkpoint: %s", reason)
    if newest is not None and manifest is not None:
        log.info("resuming from %s (step %d)", newest, manifest.step)
        return Resumption(newest, manifest)
    if skipped:
        raise UserError(
            f"resume = {path}: no checkpoint in {inside} is whole ({skipped[0]}). Start over with resume=never"
        )
    if path != "auto":
        raise UserError(f"resume = {path}: there is no checkpoint in {inside}")
    return None


def _refuse_to_lose(folder: Path) -> None:
    """Raise `UserError` where the folder holds an unfinished run."""
    newest, manifest, skipped = newest_valid(folder / "checkpoints")
    if (folder / "metrics.json").is_file():
        return
    if newest and manifest:
        raise UserError(
            f"{folder} holds an unfinished run, saved at step {manifest.step}. Go on with resume=auto, "
            "or start over with resume=never, which removes it"
        )
    for reason in skipped:
        log.warning(
            "starting over an unfinished run, for its checkpoint cannot be used: %s", reason
        )


def bring(resumption: Resumption, folder: Path) -> None:
    """Copy what a run will need again from the folder of the one it goes on from: its history and its checkpoints."""
    source, target = resumption.path.parent, folder / "checkpoints"
    best = resumption.manifest.best
    target.mkdir()
    for step in {resumption.manifest.step, *([best["step"]] if best else [])}:
        for path in (
            checkpoint_path(source, step),
            checkpoint_path(source, step).with_suffix(".json"),
        ):
            if path.is_file():
                shutil.copyfile(path, target / path.name)
    if (history := source.parent / "metrics.csv").is_file():
        shutil.copyfile(history, folder / "metrics.csv")


def _exactly(path: Path) -> Resumption:
    try:
        return Resumption(path, verify(path))
    except DamagedCheckpoint as error:
        raise UserError(
            f"resume = {path}: {error}. resume={path.parent} takes the newest that is whole"
        ) from None


def rows_digest(datasets: dict[str, Dataset]) -> str:
    """A digest of the rows of all splits, whatever file they came from."""
    digest = hashlib.sha256()
    for split, rows in sorted(datasets.items()):
        digest.update(split.encode())
        for batch in rows.with_format("arrow").iter(batch_size=1000):
            digest.update(json.dumps(batch.to_pylist(), default=str, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def weights_digest(model: nn.Module, head: Sequence[str]) -> str:
    """A digest of evenly spaced elements of every parameter: it tells apart base models, in no time for large ones.

    The modules in `head` are left out: the seed makes them.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if any(name.startswith(f"{module}.") for module in head):
            continue
        flat = parameter.detach().reshape(-1)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(flat[:: max(1, len(flat) // 256)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def random_state() -> dict[str, Any]:
    """The state of all generators of this process, in types that weights_only loads."""
    version, keys, gauss = random.getstate()
    kind, array, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(keys), gauss],
        "numpy": [
            kind,
            torch.from_numpy(np.asarray(array).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the generators into a state of `random_state`."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, array, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, array.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
