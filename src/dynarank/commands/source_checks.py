"""The doctor's checks of what training needs: packages, models and data, the tracker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynarank.commands.checks import FAIL, NOTE, OK, Check, install_command
from dynarank.commands.versions import requirements
from dynarank.settings import expand_user

NAMED = ("torch", "lightning", "transformers", "peft")
"""Packages whose versions are shown where all is well."""
QUICK_START = "quick start"
"""The name of the check of what `experiment=quickstart` needs."""
FIRST_TASK = "task=cola"
"""The name of the check of what the README's first command beside the quick start needs."""
FIRST_MODEL = "FacebookAI/roberta-base"
FIRST_DATA = "nyu-mll/glue"
LONGEST_REASON = 100
"""Characters of a library's own message that are shown."""


def packages() -> Iterator[Check]:
    """Check the installed versions: a line for all that fit, and one for each that does not."""
    needed = requirements()
    if not needed:
        found = "dynarank itself is not installed, so that its requirements are unknown"
        yield Check("packages", NOTE, found, install_command())
        return
    for requirement in needed:
        if requirement.trouble is None:
            continue
        remedy = f"pip install '{requirement.name}{requirement.range}'"
        if requirement.version is None and requirement.optional:
            remedy = install_command()
        yield Check("package", FAIL, requirement.trouble, remedy)
    fitting = {one.name: one.version for one in needed if one.trouble is None}
    shown = ", ".join(f"{name} {fitting[name]}" for name in NAMED if name in fitting)
    yield Check("packages", OK, f"{len(fitting)} fit: {shown}")


def sources() -> Iterator[Check]:
    """Check the local copy of the hub, the hub, and what the README's first commands need."""
    local = local_hub()
    yield local
    hub = online_hub()
    quick_start = packaged_model()
    first_task = first_command()
    # A silent hub ends no run as long as something else can be trained.
    nothing_runs = OK not in (local.status, hub.status, quick_start.status, first_task.status)
    if nothing_runs:
        hub.status = FAIL
    yield hub
    yield quick_start
    yield first_task


def local_hub() -> Check:
    """Check the folder that DYNARANK_HUB names."""
    root = os.environ.get("DYNARANK_HUB")
    if not root:
        found = "DYNARANK_HUB is not set, so models and data come from the hub and its cache"
        return Check("local hub", NOTE, found)
    folders = [Path(expand_user(root)) / kind for kind in ("models", "datasets")]
    if not any(folder.is_dir() for folder in folders):
        found = f"DYNARANK_HUB={root}: holds neither models/ nor datasets/"
        return Check("local hub", FAIL, found, "correct it, or unset it")
    counts = []
    for folder in folders:
        count = sum(path.is_dir() for path in folder.glob("*/*"))
        counts.append(f"{count} {folder.name}")
    return Check("local hub", OK, f"{root}: {', '.join(counts)}")


def online_hub() -> Check:
    """Check whether the hub answers, which it is asked once and briefly."""
    from dynarank.pretrained.connection import why_silent

    reason = why_silent()
    if reason is None:
        return Check("hub", OK, "answers")
    found = f"does not answer ({reason[:LONGEST_REASON]})"
    return Check("hub", NOTE, found, "set DYNARANK_HUB=DIR to a local copy")


def packaged_model() -> Check:
    """Check the model of the quick start, with its hash."""
    from omegaconf import OmegaConf

    from dynarank.config.folders import conf_folder
    from dynarank.errors import UserError
    from dynarank.pretrained.hub import ModelConfig, check_sha256, locate

    stated: Any = OmegaConf.load(conf_folder() / "model" / "minilm.yaml")
    try:
        source = locate("models", "model.path", stated.path, None)
        check_sha256(ModelConfig(path=stated.path, sha256=stated.sha256), source)
    except UserError as error:
        # These errors say what is wrong, and behind the first point what to do.
        reason, _, remedy = str(error).partition(". ")
        return Check(QUICK_START, NOTE, f"will not run: {reason}", remedy)
    return Check(QUICK_START, OK, f"its model is there, with the right hash; {_quick_data()}")


def _quick_data() -> str:
    """Return where the data of the quick start comes from."""
    from dynarank.durable_files import cache_folder
    from dynarank.tasks.packaged import RATED

    if (cache_folder() / RATED.name).is_file():
        return "its data, too"
    return "its data is fetched by pip at the first run"


def first_command() -> Check:
    """Check whether `dynarank train task=cola` would find its model and its data."""
    from dynarank.errors import UserError
    from dynarank.pretrained.hub import locate

    root = os.environ.get("DYNARANK_HUB") or None
    missing = []
    for kind, path in (("models", FIRST_MODEL), ("datasets", FIRST_DATA)):
        try:
            # The setting is for the error's text, which nobody sees here.
            locate(kind, "model.path", path, root)
        except UserError:
            missing.append(path)
    if missing:
        found = f"will not run: {' and '.join(missing)} cannot be had here"
        return Check(FIRST_TASK, NOTE, found)
    return Check(FIRST_TASK, OK, f"{FIRST_MODEL} and {FIRST_DATA} can be had")


def tracker() -> Iterator[Check]:
    """Check in which mode W&B would be used, and why."""
    from dynarank.config.schema import WANDB_MODES
    from dynarank.training.wandb_mode import mode_and_reason

    mode, reason = mode_and_reason("auto")
    if mode in (*WANDB_MODES, "shared", "dryrun", "run"):  # the last are W&B's alone
        yield Check("tracker", OK, f"W&B {mode} ({reason})")
    else:
        remedy = "unset WANDB_MODE, or set logger.mode=offline"
        yield Check("tracker", FAIL, f"{reason}={mode}: no mode of W&B's", remedy)
