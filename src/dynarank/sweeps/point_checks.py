"""What is checked of a sweep's points before the first of them runs.

A mistake that would end a run at its start is told at once, and once, and not run by run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynarank.config.before_start import typed_run
from dynarank.errors import UserError

if TYPE_CHECKING:
    from dynarank.config.schema import TrainConfig

log = logging.getLogger(__name__)


def check_points(composed: Sequence[Any], sampled: bool = False) -> list[TrainConfig]:
    """Check the settings of every point, and once for all that share them the model and the data.

    Returns the points' configurations, without those that the sampled ones are refused for.

    Args:
        composed: Hydra's composed configuration of each point.
        sampled: whether a search has drawn them. It may draw settings that do not go together, and
            such a point then fails as a run.

    Raises:
        UserError: settings do not go together, a model or data is nowhere, or a model does not fit
            its task.
    """
    configs = []
    refused = []
    for one in composed:
        try:
            configs.append(typed_run(one))
        except UserError as error:
            refused.append((one, error))
    if refused and not sampled:
        first, reason = refused[0]
        count = f"{len(refused)} of {len(composed)} runs" if len(composed) > 1 else "the only run"
        raise UserError(
            f"{count} of this sweep could not start, the first being #{first.hydra.job.num} "
            f"({first.hydra.job.override_dirname}): {reason}"
        )
    check_sources(configs)
    return configs


def warn_of_unused(configs: Sequence[TrainConfig], overrides: Sequence[str]) -> None:
    """Warn of each setting that was given for a sweep, and changes nothing in any of its runs.

    A setting that one of its methods reads, and another does not, is no mistake in a sweep.

    Args:
        configs: the points'.
        overrides: what was typed. A chosen group may take the place of what a file sweeps, and
            does something then.
    """
    from dynarank.config.given import given_settings
    from dynarank.config.unused import unused_settings

    settings = [override for override in overrides if "." in override.partition("=")[0]]
    given = given_settings(settings)
    unused_in = [unused_settings(config) for config in configs]
    for setting, as_given in given.items():
        if unused_in and all(setting in unused for unused in unused_in):
            log.warning("%s: %s", as_given, unused_in[0][setting])


def check_sources(configs: Sequence[TrainConfig]) -> None:
    """Check, once and not once a process, that every model and its data are there and fit.

    Raises:
        UserError: a model, a data set or a named file is nowhere, or a model cannot do its task.
    """
    from dynarank.config.named_places import check_named_places
    from dynarank.pretrained.models import check_fit
    from dynarank.runs.preflight import locate_model
    from dynarank.tasks import build_task

    checked = set()
    for config in configs:
        # As text, because Python has no hash for dataclasses whose fields may be set.
        sources = (str(config.model), str(config.task), str(config.hub))
        if sources not in checked:
            checked.add(sources)
            check_named_places(config)
            check_fit(config.model, locate_model(config), build_task(config.task))
