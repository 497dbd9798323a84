"""The task head alone on the frozen model: what any adapter has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dynarank.methods.config import MethodConfig
from dynarank.methods.trained_file import TrainedFileMethod


class HeadOnly(TrainedFileMethod[MethodConfig]):
    """There is no adapter; only the task head is trained."""

    takes_targets = False

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        if not self.head:
            raise ValueError("the model has no task head, so that method=head would train nothing")
        return model
