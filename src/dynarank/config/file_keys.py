"""Which of Hydra's keys a configuration file of a user's may set.

A file may come from somebody else. Hydra's keys can write any file, set environment variables and
import code. So a file that is not this project's may set only the keys listed here. What is typed
on the command line is the user's own decision and may set more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dynarank.config.folders import conf_folder
from dynarank.errors import UserError

ALLOWED = (
    "hydra.mode",
    "hydra.verbose",
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.sweep.subdir",
    "hydra.job.config.override_dirname.*",
    "hydra.sweeper.n_trials",
    "hydra.sweeper.n_jobs",
    "hydra.sweeper.n_startup_trials",
    "hydra.sweeper.seed",
    "hydra.sweeper.max_batch_size",
    "hydra.sweeper.params.*",
    "hydra.launcher.n_jobs",
    "hydra.launcher.devices",
    "hydra.launcher.devices.*",
    "hydra.launcher.timeout_min",
    "hydra.launcher.max_num_timeout",
    "hydra.launcher.signal_delay_s",
    "hydra.launcher.partition",
    "hydra.launcher.account",
    "hydra.launcher.nodes",
    "hydra.launcher.tasks_per_node",
    "hydra.launcher.gpus_per_node",
    "hydra.launcher.cpus_per_task",
    "hydra.launcher.mem_gb",
    "hydra.launcher.array_parallelism",
    "hydra.launcher.num_cpus",
    "hydra.launcher.num_gpus",
)
"""Keys of Hydra's that a file may set."""
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "output_dir")
"""Keys by which a file may choose a folder, inside the one in which the command runs."""
TYPED_ONLY = ("model.trust_remote_code",)
"""Settings that let code run, which no file may turn on."""
PLAIN_VALUE = re.compile(r"[\w.,:@/=+-]*")
"""What a file may give to a launcher. Its texts become lines of a job's shell script, in which a
line break or a blank would begin a command."""
OWN_SOURCES = ("pkg://hydra.conf", "pkg://dynarank.conf", "structured://")
PLAIN_PARAMETER = re.compile(r"(?!hydra\b)[A-Za-z][\w./]*")
"""What a file may sweep: a setting or a group, never Hydra's keys or a group's place."""


def is_own_source(path: str) -> bool:
    """Return whether a source of configurations belongs to Hydra, its plugins or this project."""
    if path in OWN_SOURCES:
        return True
    is_file = path.startswith("file://") or "://" not in path
    return is_file and Path(path.removeprefix("file://")).resolve() == conf_folder().resolve()


def check_file(config: Any, name: str) -> list[str]:
    """Check the keys that a user's file sets, and return those of `FOLDERS` among them.

    Args:
        config: the file's content, at its place in the whole configuration.
        name: the file's name in messages.

    Raises:
        UserError: the file sets a key that a file may not set.
    """
    folders = []
    for key, value in leaves(config):
        if key in FOLDERS:
            folders.append(key)
        for setting in TYPED_ONLY:
            # Not by its truth: a text or a reference may become true later.
            if key == setting and value is not False:
                raise UserError(f"{name} sets {key}, which lets code run. Type it: {key}=true")
            if setting.startswith(f"{key}.") and "${" in str(value):
                raise UserError(
                    f"{name} sets {key} = {value}: a file may not take this from a reference, "
                    f"which could set {setting}. Write it out"
                )
        is_hydra = key == "hydra" or key.startswith("hydra.")
        # fnmatch() itself would ignore capital letters on some systems.
        if is_hydra and not any(fnmatchcase(key, allowed) for allowed in ALLOWED):
            raise UserError(
                f"{name} sets {key}: a file may not set this key of Hydra's, "
                "for it can write files or run code. If you trust it, type it on the command line"
            )
        if key.startswith("hydra.launcher."):
            _check_plain(value, key, name)
        parameter = key.removeprefix("hydra.sweeper.params.")
        if parameter != key:
            is_typed_only = any(parameter.startswith(setting) for setting in TYPED_ONLY)
            if is_typed_only or not PLAIN_PARAMETER.fullmatch(parameter):
                raise UserError(f"{name} sweeps {parameter}: a file may not sweep this. Type it")
    return folders


def _check_plain(value: Any, key: str, name: str) -> None:
    """Raise `UserError` where a launcher's setting holds more than numbers and plain names."""
    for part in value if isinstance(value, list) else [value]:
        if not PLAIN_VALUE.fullmatch(str(part)):
            raise UserError(
                f"{name} sets {key} to a text with blanks, line breaks or other signs, which a "
                "file may not give to a launcher. Type it on the command line"
            )


def leaves(node: Any, path: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the raw value of every leaf; a reference is a leaf."""
    from omegaconf import DictConfig, OmegaConf

    # OmegaConf has no public call for the text of a reference to a whole mapping.
    raw = node._value() if OmegaConf.is_config(node) else node
    if not isinstance(raw, dict):
        yield ".".join(path), raw
        return
    assert isinstance(node, DictConfig)
    if not raw and path:
        return
    for key in raw:
        # The files that it names pass this check themselves.
        if key == "defaults" and not path:
            continue
        yield from leaves(_child(node, key), [*path, str(key)])


def _child(node: Any, key: Any) -> Any:
    from omegaconf import OmegaConf

    child = node._get_node(key)
    return child if OmegaConf.is_config(child) else child._value()


def check_search_path(primary: Any, name: str) -> None:
    """Refuse every search path in a user's file, since it could name a package to import.

    Raises:
        UserError: the file has one.
    """
    from omegaconf import OmegaConf

    if not OmegaConf.is_dict(primary):
        return
    for path in OmegaConf.select(primary, "hydra.searchpath") or []:
        raise UserError(
            f"{name} sets hydra.searchpath = {path}: a file may not name where files are found. "
            "Type it on the command line"
        )


def check_folders(composed: Any, keys: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuse a folder, chosen by a file, outside the one in which the command runs.

    Args:
        composed: the whole configuration.
        keys: the keys of `FOLDERS` that users' files set.
        overrides: what was typed, which may choose any folder.

    Raises:
        UserError: a folder is outside, or cannot be known yet.
    """
    from omegaconf import OmegaConf

    for key in keys:
        if any(override.lstrip("+").startswith(f"{key}=") for override in overrides):
            continue
        try:
            value = str(OmegaConf.select(composed, key))
            is_inside = Path(value).expanduser().resolve().is_relative_to(Path.cwd().resolve())
        except Exception:  # a reference that only a running job can follow
            is_inside = False
        if not is_inside:
            raise UserError(
                f"{key}: a file may choose only a folder inside the one in which the command runs. "
                f"Type it: {key}=DIR"
            )
