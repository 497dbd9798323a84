"""Which run a checkpoint belongs to, and whether a run that would go on from it is the same one."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dynarank.checkpoints.storage import Manifest
from dynarank.config.schema import TrainConfig
from dynarank.errors import UserError
from dynarank.training.distributed import is_first

if TYPE_CHECKING:
    from datasets import Dataset

    from dynarank.checkpoints.resume import Resumption

log = logging.getLogger(__name__)

PACKAGES = (
    "dynarank",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "datasets",
    "torchmetrics",
    "hydra-core",
)
"""What shapes a run's numbers."""
FIXED = (
    "model",
    "task",
    "method",
    "budget",
    "dem",
    "data",
    "base_weights",
    "trainer.batch_size",
    "trainer.accumulate",
    "trainer.epochs",
    "trainer.max_steps",
    "total_steps",
)
"""What a run cannot change and stay itself. Anything else that differs makes a resume inexact."""
GIVEN_OR_NOT = ("optimizer.head_lr",)
"""Values that a run may change, but not between null and a value.

With a rate of its own, the head stands in another group of the optimizer, and its moments too.
"""
FREE = (
    "output_dir",
    "logger",
    "hub",
    "sweep",
    "resume",
    "checkpoint",
    "task.test_file",  # test rows are scored after training
    "task.test_split",
    "trainer.workers",  # batches draw no random numbers
    "trainer.max_time",
    "trainer.gradient_checkpointing",  # the gradients are equal to the bit
)
"""What does not enter a run's numbers."""
PLACES = ("model.path", "task.path", "task.train_file", "task.validation_file")
"""Settings that may name a file or a folder. What counts is what lies there, not where."""
ROWS_A_BATCH = 1000
"""Rows that are turned into text at a time."""


def package_versions() -> dict[str, str]:
    """Return the installed versions of what shapes a run's numbers."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def identity(config: TrainConfig, **facts: Any) -> dict[str, Any]:
    """Return what a run is, by dotted name.

    Args:
        config: its settings.
        facts: what is known beside them: digests of the data and the base model, T.
    """
    known: dict[str, Any] = {}
    for name, value in flatten(asdict(config)).items():
        if not _is_below(name, FREE):
            known[name] = value
    for name in PLACES:
        if _is_local(known.get(name)):
            # Digests of the rows and the weights stand for it. The model's name follows from it.
            del known[name]
            if name == "model.path":
                known.pop("model.name", None)
    if known.get("task.labels") is None:
        known.pop("task.labels", None)  # the data tells the classes, once it is read
    # In the settings these may be null, and stand for what the model or the task says.
    known["optimizer.lr"] = config.lr
    known["trainer.batch_size"] = config.batch_size
    known["trainer.epochs"] = config.epochs
    if is_first():
        # Threads share a sum out, so that another number of them rounds it otherwise.
        known["threads"] = torch.get_num_threads()  # launchers give other ranks fewer
    known["device"] = _device_name(config.trainer.accelerator)
    for package, installed in package_versions().items():
        known[f"versions.{package}"] = installed
    # As a manifest gives it back, where a tuple has become a list.
    plain: dict[str, Any] = json.loads(json.dumps({**known, **facts}))
    return plain


def _is_local(place: Any) -> bool:
    """Return whether a setting names a file or a folder here, and no data set or model of a hub."""
    if not isinstance(place, str):
        return False
    return place.startswith(("/", "~", "./", "../")) or Path(place).exists()


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted names: `{"budget.target": 2}`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _is_below(name: str, groups: Sequence[str]) -> bool:
    """Return whether a dotted name is one of the groups' or stands below it."""
    return any(name == group or name.startswith(group + ".") for group in groups)


def _device_name(accelerator: str) -> str:
    if torch.cuda.is_available() and accelerator in ("auto", "gpu"):
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available() and accelerator in ("auto", "mps"):
        return "mps"
    return platform.machine()


def differences(saved: dict[str, Any], present: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Compare two identities, of a checkpoint and of the run at hand.

    Only what both know is compared, so that settings can be checked before anything is loaded.

    Returns:
        in words, what makes it another run, names first, because they say most; and what makes a
        resume inexact.
    """
    fixed: list[str] = []
    inexact: list[str] = []
    for name in sorted(saved.keys() & present.keys()):
        if saved[name] == present[name]:
            continue
        words = f"{name} was {saved[name]}, is {present[name]}"
        appeared = name in GIVEN_OR_NOT and None in (saved[name], present[name])
        if appeared or _is_below(name, FIXED):
            fixed.append(words)
        else:
            inexact.append(words)
    # False sorts before True: the names of model, task and method come first.
    fixed.sort(key=lambda words: (".name was " not in words, words))
    return fixed, sorted(inexact)


class IdentityCheck:
    """The identity of a run as it becomes known, compared with a checkpoint's at once.

    Args:
        config: the run's settings, which are compared first.
        resumption: the checkpoint to go on from; None for a new run, where nothing is compared.

    Raises:
        UserError: from here and from `add`: the checkpoint is of another run, or the run would not
            go on exactly and `resume.allow_inexact` is not set.
    """

    def __init__(self, config: TrainConfig, resumption: Resumption | None) -> None:
        self.config = config
        self.resumption = resumption
        self.facts: dict[str, Any] = {}
        self._compare()

    def add(self, **facts: Any) -> None:
        """Compare what has become known."""
        self.facts |= facts
        self._compare()

    @property
    def identity(self) -> dict[str, Any]:
        """Return what the run is, as far as is known by now."""
        return identity(self.config, **self.facts)

    def _compare(self) -> None:
        if self.resumption is None:
            return
        manifest, path = self.resumption.manifest, self.resumption.path
        fixed, inexact = differences(manifest.identity, self.identity)
        if fixed:
            raise UserError(
                f"{path}: is of another run: {_first_of(fixed)}. Give its settings, or another "
                "hydra.run.dir"
            )
        if inexact and not self.config.resume.allow_inexact:
            raise UserError(
                f"{path}: the run would not go on exactly as it began: {_first_of(inexact)}. "
                "Restore that, or accept it with resume.allow_inexact=true"
            )
        for difference in inexact:
            # The next checkpoints take over the manifest's list.
            _record_inexact(manifest, difference)


def _record_inexact(manifest: Manifest, difference: str) -> None:
    """Note in a manifest, once, that the run goes on although something differs."""
    note = f"step {manifest.step}: {difference}"
    if note not in manifest.inexact:
        log.warning("resumed inexactly: %s", difference)
        manifest.inexact.append(note)


def _first_of(differing: list[str]) -> str:
    first = differing[0]
    return first if len(differing) == 1 else f"{first} ({len(differing)} differ)"


def _with_contents(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in which an image's file is named by its content, and not by its place."""
    contents = {}
    for name, value in row.items():
        # So datasets has an image whose bytes are not in the table.
        is_file = isinstance(value, dict) and value.keys() == {"bytes", "path"}
        if is_file and value["bytes"] is None and value["path"] is not None:
            with Path(value["path"]).open("rb") as file:
                contents[name] = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            contents[name] = value
    return contents


def rows_digest(datasets: dict[str, Dataset]) -> str:
    """Return a digest of the rows of all splits, whatever file they came from."""
    digest = hashlib.sha256()
    for split, rows in sorted(datasets.items()):
        digest.update(split.encode())
        for batch in rows.with_format("arrow").iter(batch_size=ROWS_A_BATCH):
            contents = [_with_contents(row) for row in batch.to_pylist()]
            # JSON has no form for dates and for the bytes of images.
            text = json.dumps(contents, default=str, sort_keys=True)
            digest.update(text.encode())
    # 64 bits: it finds other rows that came by accident, and no forgery.
    return digest.hexdigest()[:16]
