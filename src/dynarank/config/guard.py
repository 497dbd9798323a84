"""What no composed configuration may hold: things to build from anywhere, and secrets.

Hydra builds callbacks, launchers, sweepers and loggers from what a configuration names, that of a
folder or a saved run included, before the run begins. A secret would be saved with the run. So
every composition is checked as Hydra makes it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dynarank.config.before_start import check_ranges
from dynarank.config.file_keys import (
    check_file,
    check_folders,
    check_search_path,
    is_own_source,
    leaves,
)
from dynarank.config.given import forget_files, note_file
from dynarank.config.redaction import SECRET_FORMS, is_secret_name, secret_environment
from dynarank.errors import UserError
from dynarank.settings import expand_user

BUILDERS = ("_target_", "()", "class", "factory")
"""Keys by which Hydra, and Python's logging, name what to build."""
PACKAGES = (
    "hydra._internal.core_plugins.",
    "hydra.experimental.callbacks.",
    "hydra_plugins.",
    "dynarank.",
)
"""Packages whose classes may be built. What their modules import is not meant:
`dynarank.sweeps.sweep.subprocess.run` is no class of dynarank's."""
LOGGING = (
    "logging.StreamHandler",
    "logging.FileHandler",
    "logging.NullHandler",
    "logging.Formatter",
    "logging.handlers.RotatingFileHandler",
    "logging.handlers.TimedRotatingFileHandler",
    "colorlog.ColoredFormatter",
)
MAKERS = ("oc.create", "oc.decode")
"""Resolvers that make a mapping of a text."""
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
"""What a log handler may refer to: `ext://` imports any module."""
DEEPEST = 30
REMEDY = (
    "Give secrets by environment variables alone (HF_TOKEN, WANDB_API_KEY), "
    "which the libraries read themselves"
)


@dataclass(frozen=True)
class Entry:
    """A key of a configuration."""

    name: str
    """Its dotted name."""
    key: str
    """The last part of the name."""
    reference: str
    """The text of a value that refers to another, `${...}`; else empty."""
    value: Any
    """The value, with a reference followed where that is possible."""


@contextmanager
def guarded(check_values: bool = False) -> Iterator[None]:
    """Check each configuration that Hydra composes, a sweep's points included, before it acts.

    Hydra has no hook of its own between composing and acting, so three of its methods are replaced.

    Args:
        check_values: also check the values' ranges, before Hydra makes the run's folder.

    Raises:
        UserError: as `check`, and as `file_keys` for what a user's file may not set.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.types import RunMode

    compose = ConfigLoaderImpl.load_configuration
    load_file = ConfigLoaderImpl._load_single_config
    add_search_path = ConfigLoaderImpl._process_config_searchpath
    # Filled by `load_checked`, file after file, while Hydra composes.
    folders: list[str] = []

    def load_checked(loader: Any, default: Any, repo: Any) -> Any:
        loaded = load_file(loader, default=default, repo=repo)
        if not is_own_source(loaded.path):
            name = f"{default.config_path}.yaml"
            folders.extend(check_file(loaded.config, name))
            note_file(leaves(loaded.config), name)
        return loaded

    def add_checked(loader: Any, config_name: Any, parsed_overrides: Any, repo: Any) -> None:
        # Before Hydra follows the path: a pkg:// in it imports a package.
        primary = repo.load_config(config_path=config_name) if config_name else None
        if primary is not None and not is_own_source(primary.path):
            check_search_path(primary.config, f"{config_name}.yaml")
        add_search_path(loader, config_name, parsed_overrides, repo)

    def checked(
        loader: Any, config_name: Any, overrides: Any, *arguments: Any, **options: Any
    ) -> Any:
        # A process may compose several times: a sweep, and each of its points.
        folders.clear()
        forget_files()
        composed = compose(loader, config_name, overrides, *arguments, **options)
        check(composed)
        check_folders(composed, folders, overrides)
        expand_folders(composed)
        # A sweep's own composition is no run: what is swept may be open in it.
        if check_values and composed.hydra.mode != RunMode.MULTIRUN:
            check_ranges(composed)
        return composed

    ConfigLoaderImpl.load_configuration = checked
    ConfigLoaderImpl._load_single_config = load_checked
    ConfigLoaderImpl._process_config_searchpath = add_checked
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = compose
        ConfigLoaderImpl._load_single_config = load_file
        ConfigLoaderImpl._process_config_searchpath = add_search_path


def expand_folders(composed: Any) -> None:
    """Put the home folder in place of a leading ~ in the folders that Hydra makes."""
    for node in (composed.hydra.run, composed.hydra.sweep):
        # The text as it is written: references in it, as to the time, are followed later.
        raw = node._get_node("dir")._value()
        if isinstance(raw, str) and raw.startswith("~"):
            node.dir = expand_user(raw)


def refuse_pickle(arguments: Sequence[str]) -> None:
    """Refuse the one option of Hydra's that unpickles a file.

    Raises:
        UserError: the option, or a beginning of it, which argparse takes too, is there.
    """
    if any(argument.startswith("--e") for argument in arguments):
        raise UserError(
            "--experimental-rerun loads a pickle, which can run anything. "
            "Give the run's overrides again: they stand in its .hydra/overrides.yaml"
        )


def check(composed: Any) -> None:
    """Refuse what a configuration may not hold.

    Raises:
        UserError: the message names the setting, and never shows a secret's value.
    """
    secrets = secret_environment()
    found = list(entries(composed))
    # A user knows the settings better than Hydra's keys, so a fault in a setting comes first.
    found.sort(key=lambda entry: entry.name.startswith("hydra."))
    for entry in found:
        if entry.key in BUILDERS:
            check_target(entry.name, entry.value)
        if str(entry.value).startswith("ext://") and entry.value not in STREAMS:
            raise UserError(f"{entry.name} = {entry.value}: must be one of {', '.join(STREAMS)}")
        check_secret(entry, secrets)


def check_secret(entry: Entry, secrets: Mapping[str, str]) -> None:
    """Refuse a secret in a configuration's name, key or value.

    Args:
        entry: what to look at.
        secrets: values of environment variables that are secret, by the variable's name.

    Raises:
        UserError: there is one; the message does not show it.
    """
    from omegaconf import OmegaConf

    if entry.value not in (None, "", {}, []) and is_secret_name(entry.key):
        raise UserError(
            f"{entry.name} looks like a secret, and a configuration is saved with its run. {REMEDY}"
        )
    value = "" if OmegaConf.is_config(entry.value) else str(entry.value)
    for text in (entry.key, entry.reference, value):
        if any(form.search(text) for form in SECRET_FORMS):
            raise UserError(
                f"{entry.name} holds a token, or a URL with one, and is saved with its run. "
                f"{REMEDY}"
            )
        for variable, secret in secrets.items():
            if secret in text:
                raise UserError(
                    f"{entry.name} holds the value of ${variable}, and is saved with its run. "
                    f"{REMEDY}"
                )


def entries(node: Any, prefix: str = "") -> Iterator[Entry]:
    """Yield every key of a configuration, at any depth.

    A reference that only a running job can follow keeps its text as its value.

    Raises:
        UserError: the configuration nests too deep, or makes settings of a text that is not known.
    """
    from omegaconf import DictConfig, OmegaConf

    if prefix.count(".") > DEEPEST:
        raise UserError(f"{prefix.rstrip('.')[:80]}...: the configuration nests too deep")
    keys: Sequence[Any] = list(node.keys()) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        if OmegaConf.is_missing(node, key):
            continue
        entry = _read_entry(node, key, f"{prefix}{key}")
        yield entry
        # What a reference leads to is checked where it stands. Followed, some would never end.
        makes_settings = any(maker in entry.reference for maker in MAKERS)
        if OmegaConf.is_config(entry.value) and (not entry.reference or makes_settings):
            yield from entries(entry.value, f"{entry.name}.")


def _read_entry(node: Any, key: Any, name: str) -> Entry:
    from omegaconf import OmegaConf

    reference = ""
    if OmegaConf.is_interpolation(node, key):
        # OmegaConf has no public call for a reference's own text.
        reference = str(node._get_node(key)._value())
    try:
        value = node[key]
    except Exception:  # what it refers to is checked where it stands
        if any(maker in reference for maker in MAKERS):
            raise UserError(
                f"{name} = {reference}: makes settings of a text that is not known yet. "
                "Write them out"
            ) from None
        value = reference
    return Entry(name=name, key=str(key), reference=reference, value=value)


def check_target(name: str, target: Any) -> None:
    """Refuse what is no class of those that a configuration may build.

    Raises:
        UserError: the message lists the packages and classes that are allowed.
    """
    is_own = isinstance(target, str) and target.startswith(PACKAGES) and _is_own_class(target)
    if is_own or target in LOGGING:
        return
    packages = ", ".join(package.rstrip(".") for package in PACKAGES)
    raise UserError(
        f"{name} = {target}: a configuration may build only classes of {packages}, "
        f"and {', '.join(LOGGING)}"
    )


def _is_own_class(target: str) -> bool:
    # The caller has looked at the beginning of the name: no other package is imported here.
    module, _, name = target.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return False
    # By where it is defined: an own module has names that it imported, too.
    return isinstance(kind, type) and f"{kind.__module__}.".startswith(PACKAGES)
