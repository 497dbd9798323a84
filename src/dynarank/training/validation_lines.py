"""The lines that a validation leaves in the console and in train.log."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)

SECONDS = 30.0
"""Between two lines about a long validation."""


class ValidationLines:
    """Writes where a validation is, for logs; a terminal has its bar."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def begin(self) -> None:
        """Count the time from now on."""
        self._last = time.monotonic()

    def log_progress(self, batch: int, batches: int | float) -> None:
        """Write a line every half minute, once `batch` of `batches` are done."""
        if time.monotonic() - self._last > SECONDS:
            self._last = time.monotonic()
            log.info("validation: batch %d of %s", batch, batches)


def log_scores(
    step: int,
    total_steps: int,
    scores: Mapping[str, float],
    allocation: str | None,
    collapsed: str | None = None,
) -> None:
    """Write a validation's line: the step, the scores and the allocation's status, if any.

    Args:
        step: of the optimizer.
        total_steps: of the run.
        scores: by metric.
        allocation: the allocation's status, in words.
        collapsed: the one prediction that all rows share, in words; None where they differ.
    """
    parts = [f"step {step}/{total_steps}"]
    parts += [f"{name} {value:.4f}" for name, value in scores.items()]
    if allocation is not None:
        parts.append(allocation)
    if collapsed is not None:
        parts.append(f"predicted {collapsed}")
    log.info("  ".join(parts))
