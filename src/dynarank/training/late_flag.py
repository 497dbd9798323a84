"""A flag that an accelerator raises, and that the host reads without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LateFlag:
    """Whether something was found on a device, read on the host once it is there anyway."""

    def __init__(self, device: torch.device) -> None:
        # A number and not a bool, because torch's fused optimizers take found_inf as float32.
        self.flag = torch.zeros((), device=device)
        """1 once something was found, a float32 scalar; it stays."""
        self._is_accelerator = device.type != "cpu"
        # A copy goes on beside the host only into pinned memory.
        self._host = torch.zeros((), pin_memory=self._is_accelerator)
        self._event: Any = None
        self._added = 0
        self._copied = 0

    def add(self, found: Tensor) -> None:
        """Take in whether it was found once more, a bool scalar on the device."""
        # In place, because the optimizer already holds this very tensor as its found_inf.
        torch.maximum(self.flag, found.float(), out=self.flag)
        self._added += 1

    def read(self) -> tuple[int, bool] | None:
        """Return how many additions a copy that has arrived holds, and what it says; or None."""
        arrived = self._arrived() if self._copied and self._is_there() else None
        # One copy at a time: the next would overwrite what has not been read.
        if not self._copied and self._added:
            self._begin_copy()
        return arrived

    def wait(self) -> tuple[int, bool]:
        """Return the same of all additions, once the device is so far."""
        # Anew, because a copy that is under way may lack the last additions.
        self._begin_copy()
        if self._event is not None:
            self._event.synchronize()
        return self._arrived()

    def _begin_copy(self) -> None:
        self._host.copy_(self.flag, non_blocking=True)
        self._copied = self._added
        if self._is_accelerator:
            self._event = torch.get_device_module(self.flag.device).Event()
            self._event.record()

    def _is_there(self) -> bool:
        # On a CPU there is no event: the copy was done when the call returned.
        return self._event is None or bool(self._event.query())

    def _arrived(self) -> tuple[int, bool]:
        count = self._copied
        self._copied = 0
        self._added -= count
        return count, bool(self._host.numpy())  # no torch operation: nothing to wait for
