"""Commands that start in a moment: forks of a process that has imported what every run imports.

A run spends about six seconds of processor time on imports (torch, transformers, Lightning ...).
Python's own fork server does that once for a whole sweep. Each run is still a process of its own,
forked from a parent that has never run one, so that no run sees what another left in memory.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.forkserver import ensure_running, set_forkserver_preload
from pathlib import Path
from typing import Protocol

PRELOADED = ["dynarank.sweeps.preloaded_modules"]
"""The module whose imports every run needs."""
READ_AT_IMPORT = (
    "HF_",
    "HUGGINGFACE_",
    "TRANSFORMERS_",
    "OMP_",
    "MKL_",
    "GOMP_",
    "PYTHON",
    "TORCH",
)
"""How names of environment variables begin that libraries read once, when they are imported."""
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")
"""Files by which a driver of NVIDIA's or AMD's shows itself."""

_lock = threading.Lock()
"""Held where `multiprocessing` starts a process or reads an exit code: it does so for all of its
processes at once, and two threads would take each other's."""
_server_environment: dict[str, str] = {}
"""The environment that the server was started with."""


class Process(Protocol):
    """What a sweep asks of a run's process; `subprocess.Popen` has it too."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises `subprocess.TimeoutExpired` after `timeout` seconds."""

    def send_signal(self, sig: int) -> None:
        """Send a signal to it."""

    def terminate(self) -> None:
        """Send SIGTERM to it."""


class ForkedCommand:
    """A Python command in a fork of the preloaded server. It begins when it is made.

    Args:
        command: the interpreter and a script, or the interpreter, -m and a module; then arguments.
        output: the file that takes what it prints; it exists.
        directory: where it runs.
        environment: all variables that it sees.
    """

    def __init__(
        self,
        command: Sequence[str],
        output: Path,
        directory: Path,
        environment: Mapping[str, str],
    ) -> None:
        self._command = list(command)
        self._process = multiprocessing.get_context("forkserver").Process(
            target=_run_command,
            args=(self._command, str(output), str(directory), dict(environment)),
        )
        with _lock:
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs; -N after signal N."""
        with _lock:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code.

        Raises:
            subprocess.TimeoutExpired: it runs on after `timeout` seconds.
        """
        # Outside the lock, because it may last for hours.
        wait([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self._command, timeout or 0)
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal to it, if it has not ended."""
        # The number of a process that has ended may be another's by now.
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        """Send SIGTERM to it, if it has not ended."""
        with _lock:
            self._process.terminate()


def start_server(environment: Mapping[str, str]) -> bool:
    """Start the server, if none runs and this machine can have one, and return whether one runs.

    It cannot where a GPU is: its driver does not work in a fork of a process that has asked for
    it, and imports ask. Other systems than Linux have trouble with forks of so many libraries.

    Args:
        environment: all variables that the server's imports are to see.
    """
    if not sys.platform.startswith("linux") or any(Path(file).exists() for file in GPU_DRIVERS):
        return False
    if not _server_environment:  # it is filled once the server runs
        # The server takes the environment that this process has when it starts it.
        before = dict(os.environ)
        set_forkserver_preload(PRELOADED)
        try:
            os.environ.update(environment)
            ensure_running()
        except OSError:  # no room for its socket, say
            return False
        finally:
            os.environ.clear()
            os.environ.update(before)
        _server_environment.update(environment)
    return True


def start_forked(
    command: Sequence[str], output: Path, directory: Path, environment: Mapping[str, str]
) -> Process | None:
    """Return the command's process, a fork of the server; None where it needs its own start."""
    if not can_fork(command, environment):
        return None
    try:
        return ForkedCommand(command, output, directory, environment)
    except (OSError, EOFError):  # the server is gone
        return None


def can_fork(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Return whether a command would end in a fork of the server as in a process of its own.

    It would not where a variable that libraries read at import differs from the server's.
    """
    # A fork goes on in the server's interpreter, whatever the command names.
    if not _server_environment or list(command[:1]) != [sys.executable] or len(command) < 2:
        return False
    # Hydra sets these before a command's heavy imports, which a fork has behind it.
    if any("hydra.job.env_set" in word for word in command):
        return False
    return _at_import(environment) == _at_import(_server_environment)


def _at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that libraries read when they are imported."""
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}


def _run_command(
    command: list[str], output: str, directory: str, environment: dict[str, str]
) -> None:
    """Be the command, in the fork: its output, folder, variables and arguments."""
    # Processes that the command starts are to begin as they would without the server.
    multiprocessing.set_start_method(None, force=True)
    # The fork begins with the server's variables.
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    # Not sys.stdout alone: what libraries in C and child processes print goes there, too.
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    # A SystemExit goes on to `multiprocessing`, which makes it the exit code.
    try:
        if command[1] == "-m":
            sys.argv = command[2:]  # run_module puts the module's path in the first place
            runpy.run_module(command[2], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command[1:]
            runpy.run_path(command[1], run_name="__main__")
    finally:
        # `multiprocessing` ends a process without them, and trackers finish their runs there.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
