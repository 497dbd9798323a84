"""Steps that a loss scaler skips because a gradient overflowed."""

from __future__ import annotations

from torch import nn

from dynarank.training.nonfinite import NonFiniteError, first_nonfinite_gradient

MAX_SKIPPED_STEPS = 50
"""Steps that a loss scaler may skip in a row.

It halves its scale each time: scaled down by 2^50, no gradient overflows any more.
"""


class SkippedSteps:
    """How many steps a loss scaler has skipped in a row."""

    def __init__(self) -> None:
        self.count = 0

    def end(self) -> None:
        """Start counting again, after a step that was taken."""
        self.count = 0

    def add(self, model: nn.Module, step: int) -> None:
        """Count a skipped step.

        Args:
            model: whose gradients overflowed.
            step: the optimizer steps that were taken.

        Raises:
            NonFiniteError: it is the `MAX_SKIPPED_STEPS`th in a row.
        """
        self.count += 1
        if self.count == MAX_SKIPPED_STEPS:
            place = first_nonfinite_gradient(model) or "no parameter"
            raise NonFiniteError(
                step,
                f"the loss scaler skipped {MAX_SKIPPED_STEPS} steps in a row, and halved its scale "
                f"each time; not finite: {place}",
            )
