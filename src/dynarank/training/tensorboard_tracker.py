"""TensorBoard as a tracker: Lightning's logger, with the rank map among its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from dynarank.errors import UserError
from dynarank.run_folder import TENSORBOARD


class TensorBoardTracker(TensorBoardLogger):
    """Writes a run's curves and rank maps into its folder, for `tensorboard --logdir`.

    Args:
        folder: the run's.
        settings: the run's, with all values resolved.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        check_tensorboard()
        # By default, Lightning makes subfolders of these names and numbers them.
        super().__init__(save_dir=folder / TENSORBOARD, name="", version="")
        self.settings = dict(settings)

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log matplotlib figures at an optimizer step."""
        self.experiment.add_figure(key, images, global_step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Leave the settings beside the final numbers, for TensorBoard's table of runs."""
        numbers = {}
        for name, value in summary.items():
            # The table takes numbers alone, and `final/collapsed` is a text.
            if isinstance(value, int | float):
                numbers[name] = value
        self.log_hyperparams(self.settings, numbers)


def check_tensorboard() -> None:
    """Raise `UserError` where the package is missing."""
    if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
        raise UserError(
            "logger.tracker = tensorboard: the package is not installed. "
            "pip install tensorboard, or take logger=wandb or logger=none"
        )
