"""Whether the process of a run is alive, on this machine or another."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

HEARTBEAT = 30.0
"""Seconds between two touches of running.json, by which other machines know a run is alive."""


def is_alive(record: Path) -> bool:
    """Return whether the process that a running.json names is alive.

    Of a process on another machine only the record's heartbeat is known.
    """
    try:
        known = json.loads(record.read_text())
        if known.get("host", socket.gethostname()) != socket.gethostname():
            # A late touch or two is no death.
            return time.time() - record.stat().st_mtime < 4 * HEARTBEAT
        process = int(known["pid"])
        # Signal 0 is none: it only asks whether the process is there. Another user's is, too.
        with suppress(PermissionError):
            os.kill(process, 0)
        facts = process_facts(process)
        if facts is None:
            return True
        # The number may have been given to another process since.
        same_process = facts.started == known.get("started", facts.started)
        return same_process and not facts.zombie
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return False  # a damaged record names no process


class ProcessFacts(NamedTuple):
    """What the system tells of a process."""

    started: int
    """When it started, in clock ticks since the machine did."""
    zombie: bool
    """Whether it has ended and nobody has asked for its exit code, as orphans in containers."""


def process_facts(process: int) -> ProcessFacts | None:
    """Return what the system tells of a process, or None where there is no /proc."""
    stat = Path(f"/proc/{process}/stat")
    if not stat.is_file():
        return None
    # The second field is the program's name in parentheses, and may hold anything.
    fields = stat.read_text().rpartition(")")[2].split()
    # proc(5) counts fields from 1: the state is the third, the start the 22nd. Two are cut off.
    return ProcessFacts(started=int(fields[19]), zombie=fields[0] == "Z")
