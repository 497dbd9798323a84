"""What the runs of a sweep are called: their folders, and their names and tags in the tracker."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dynarank.config.command_line import typed_setting
from dynarank.errors import UserError

LONGEST_TAG = 64
"""Characters of a tag; W&B takes no longer one."""


def resume_hint(sweep: Path) -> str:
    """Return the words that say how a sweep goes on."""
    return f"the same command with sweep.resume=true {typed_setting('hydra.sweep.dir', sweep)}"


def refuse_shared(points: Sequence[tuple[int, Path]]) -> None:
    """Raise `UserError` where two runs would have one folder: the later would replace the other.

    Args:
        points: the number and the folder of each.
    """
    numbers: dict[Path, int] = {}
    for number, folder in points:
        if folder in numbers:
            raise UserError(
                f"hydra.sweep.subdir: runs #{numbers[folder]} and #{number} would have the folder "
                f"{folder}, where the later replaces the other. Name each by its number: "
                "'hydra.sweep.subdir=${hydra.job.num}'"
            )
        numbers[folder] = number


def varying(overrides: Sequence[str], all_overrides: Sequence[Sequence[str]], config: Any) -> Any:
    """Return those of a point's overrides by which it differs from others, in their order.

    Args:
        overrides: the point's.
        all_overrides: those of every point that is known by now. A sampling sweeper gives a few.
        config: Hydra's composed configuration of the sweep.

    Returns:
        a list of overrides; all of them where none differs.
    """
    # A list to sweep is one text here, as it was typed, and a point has one of its values. So a
    # text that stands both here and in a point is the same in all points.
    shared = set(config.hydra.overrides.task)
    if len(all_overrides) > 1:
        shared |= set(all_overrides[0]).intersection(*all_overrides)
    differing = [override for override in overrides if override not in shared]
    return differing or list(overrides)


def without(overrides: Sequence[str], settings: Collection[str]) -> list[str]:
    """Return the overrides but for those of these settings."""
    return [override for override in overrides if setting_of(override) not in settings]


def setting_of(override: str) -> str:
    """Return the name of the setting that an override sets."""
    return override.partition("=")[0].lstrip("+~")


def tracker_environment(
    group: str, experiment: str | None, point_varying: Sequence[str]
) -> dict[str, str]:
    """Return W&B's own variables: a sweep's runs share a group; names and tags hold what varies.

    What the user has set is kept: a group, tags beside these, a name before what varies.

    Args:
        group: the sweep's name.
        experiment: the name of the experiment's file; it stands before what varies.
        point_varying: the overrides by which the run differs from the others.
    """
    tags = [os.environ["WANDB_TAGS"]] if os.environ.get("WANDB_TAGS") else []
    for override in point_varying:
        # Seeds repeat a setting, and share its tags.
        if setting_of(override) != "seed" and "," not in override:  # a comma parts two tags
            tags.append(override.lstrip("+")[:LONGEST_TAG])
    begin = os.environ.get("WANDB_NAME") or experiment
    words = [begin] if begin else []
    words += [override.lstrip("+") for override in point_varying]
    variables = {
        "WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP") or group,
        "WANDB_NAME": " ".join(words)[:128],
    }
    # Of a sweep over seeds there are none, and W&B refuses an empty tag.
    if tags:
        variables["WANDB_TAGS"] = ",".join(tags)
    return variables
