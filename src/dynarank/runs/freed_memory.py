"""Let a training process on CPUs keep the memory that it frees, and take it again.

The C library of most Linux systems (glibc) gives large freed blocks back to the system, and gets
them again, page by page, a moment later: each layer of each step frees and takes megabytes. Where
that was measured it took up to a sixth of a step's time, and sometimes none.
"""

from __future__ import annotations

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT_BYTES = 2**30
"""The most that stays with the process unused, at the end of its heap."""
_LARGEST_HEAP_BLOCK = 2**25
"""Larger blocks are mapped one by one all the same: the most that every glibc accepts."""
_USERS_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have glibc keep up to `KEPT_BYTES` of freed memory; return whether it does.

    It is for the whole process. Nothing is done under another C library, or where the environment
    has a setting of glibc's own for it.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _USERS_CHOICE):
        return False
    # None stands for what the process has loaded already: the C library that torch uses too.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # One without the other would map every block above 128 KiB, and be slower than before.
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK)) and bool(
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
    )
