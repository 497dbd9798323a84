"""What no composed configuration may hold: objects to build from anywhere, and secrets, which would be saved with it.

Hydra builds callbacks, launchers, sweepers and loggers from what a configuration names, that of a folder or a saved run
included, before the run begins. So every composition is checked as Hydra makes it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dynarank.config.redaction import SECRET_FORMS, SECRET_NAME, secret_environment
from dynarank.errors import UserError

BUILDERS = ("_target_", "()", "class", "factory")
"""Keys by which Hydra, and Python's logging, name what to build."""
PACKAGES = (
    "hydra._internal.core_plugins.",
    "hydra.experimental.callbacks.",
    "hydra_plugins.",
    "dynarank.",
)
"""Whose classes may be built. Not what they import: `dynarank.sweeps.sweep.subprocess.run` is no class of dynarank's."""
LOGGING = (
    *("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter"),
    *(
        "logging.handlers.RotatingFileHandler",
        "logging.handlers.TimedRotatingFileHandler",
        "colorlog.ColoredFormatter",
    ),
)
MAKERS = ("oc.create", "oc.decode")
"""Resolvers that make a mapping of a text."""
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
"""What a log handler may refer to: `ext://` imports any module."""
DEEPEST = 30
REMEDY = "Give secrets by environment variables alone (HF_TOKEN, WANDB_API_KEY), which the libraries read themselves"


@contextmanager
def guarded() -> Iterator[None]:
    """Check each configuration that Hydra composes, a sweep's points included, before it acts on one (`UserError`)."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    compose = ConfigLoaderImpl.load_configuration

    def checked(*arguments: Any, **options: Any) -> Any:
        composed = compose(*arguments, **options)
        check(composed)
        return composed

    ConfigLoaderImpl.load_configuration = checked
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = compose


def refuse_pickle(arguments: Sequence[str]) -> None:
    """Raise `UserError` for the one option of Hydra's that unpickles a file."""
    if any(one.startswith("--e") for one in arguments):  # argparse takes its beginnings too
        raise UserError(
            "--experimental-rerun loads a pickle, which can run anything. Give the run's overrides again: they stand in "
            "its .hydra/overrides.yaml"
        )


def check(composed: Any) -> None:
    """Raise `UserError` for what a configuration may not hold. The message never shows a secret's value."""
    from omegaconf import OmegaConf

    known = secret_environment()
    for name, key, raw, value in sorted(
        entries(composed), key=lambda one: one[0].startswith("hydra.")
    ):  # settings first
        if key in BUILDERS:
            check_target(name, value)
        if str(value).startswith("ext://") and value not in STREAMS:
            raise UserError(f"{name} = {value}: must be one of {', '.join(STREAMS)}")
        if value not in (None, "", {}, []) and SECRET_NAME.search(key):
            raise UserError(
                f"{name} looks like a secret, and a configuration is saved with its run. {REMEDY}"
            )
        for text in (key, raw, "" if OmegaConf.is_config(value) else str(value)):
            if any(form.search(text) for form in SECRET_FORMS):
                raise UserError(
                    f"{name} holds a token, or a URL with one, and is saved with its run. {REMEDY}"
                )
            if leaked := [variable for variable, secret in known.items() if secret in text]:
                raise UserError(
                    f"{name} holds the value of ${leaked[0]}, and is saved with its run. {REMEDY}"
                )


def entries(node: Any, prefix: str = "") -> Iterator[tuple[str, str, str, Any]]:
    """Dotted name, last key, text of a reference, and value with its references followed, of all in a configuration.

    A reference that only a running job can follow stays as it is written.
    """
    from omegaconf import DictConfig, OmegaConf

    if prefix.count(".") > DEEPEST:
        raise UserError(f"{prefix.rstrip('.')[:80]}...: the configuration nests too deep")
    keys: Sequence[Any] = list(node.keys()) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        if OmegaConf.is_missing(node, key):
            continue
        name, reference = f"{prefix}{key}", OmegaConf.is_interpolation(node, key)
        raw = str(node._get_node(key)._value()) if reference else ""
        try:
            value = node[key]
        except Exception:  # what it refers to is checked where it stands
            if any(maker in raw for maker in MAKERS):
                raise UserError(
                    f"{name} = {raw}: makes settings of a text that is not known yet. Write them out"
                ) from None
            value = raw
        yield name, str(key), raw, value
        if OmegaConf.is_config(value) and (not reference or any(maker in raw for maker in MAKERS)):
            yield from entries(value, f"{name}.")


def check_target(name: str, target: Any) -> None:
    """Raise `UserError` unless it names a class of those that a configuration may build."""
    if target in LOGGING or (
        isinstance(target, str) and target.startswith(PACKAGES) and _is_own_class(target)
    ):
        return
    raise UserError(
        f"{name} = {target}: a configuration may build only classes of {', '.join(one[:-1] for one in PACKAGES)}, and "
        f"{', '.join(LOGGING)}"
    )


def _is_own_class(target: str) -> bool:
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return False
    return isinstance(found, type) and f"{found.__module__}.".startswith(PACKAGES)
