"""The configuration of a run that Hydra has composed, and has made no folder for yet."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynarank.config.schema import TrainConfig


def check_ranges(composed: Any) -> None:
    """Refuse a value out of its range, before the run's folder is made.

    What only the running job can know is left to the job's own check.

    Raises:
        UserError: as `to_config`.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from dynarank.config.schema import TrainConfig

    # One without the schema is refused by the job, which says what to write.
    if OmegaConf.get_type(composed) is not TrainConfig:
        return
    with suppress(OmegaConfBaseException):
        typed_run(composed)


def typed_run(composed: Any) -> TrainConfig:
    """Return the typed configuration of a run that Hydra has composed, and not started yet.

    Raises:
        UserError: as `to_config`.
    """
    from omegaconf import open_dict

    from dynarank.config.schema import to_config

    # Of a copy, for Hydra goes on with what it composed.
    run = copy.deepcopy(composed)
    with open_dict(run):
        run.pop("hydra")
        # By default it refers to what only a running job knows.
        run.output_dir = "not known yet"
    return to_config(run)
