"""Matthews' correlation of classes, which is zero for a model that predicts one class."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassMatthewsCorrCoef


class Matthews(MulticlassMatthewsCorrCoef):
    """Matthews' correlation over classes (Gorodkin, 2004), as scikit-learn and GLUE define it.

    Where a margin of the table is zero the correlation has no value, and counts as 0. torchmetrics
    takes a limit there: of two classes it gives a model that always predicts the majority class up
    to 0.7, although such a model has learned nothing.
    """

    def compute(self) -> Tensor:
        """Return the correlation, a scalar from -1 to 1."""
        table = self.confmat.double()  # (classes, classes) rows by label and prediction
        labels, guesses = table.sum(dim=1), table.sum(dim=0)
        rows = table.sum()
        covariance = table.diagonal().sum() * rows - labels @ guesses
        spread = (rows.square() - labels @ labels) * (rows.square() - guesses @ guesses)
        correlation = covariance / spread.sqrt()
        return torch.where(spread > 0, correlation, 0.0).float()
