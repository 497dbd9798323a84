"""The doctor's checks of the machine: system, devices, precisions, disk, threads, shared memory."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dynarank.commands.checks import FAIL, NOTE, OK, Check

GIB = 2**30
LEAST_DISK = 1.0
"""GiB below which a run will fail."""
ENOUGH_DISK = 10.0
"""GiB below which a large model's run may fail."""
LEAST_MEMORY = 2.0
"""GiB of free memory below which even a small model may not train."""
LEAST_SHARED_MEMORY = 0.25
"""GiB of shared memory that data workers want; containers often have 0.06."""
GIT_SECONDS = 15.0
"""How long git may take to answer."""


def python() -> Iterator[Check]:
    """Check the version of Python."""
    version = sys.version.split()[0]
    supported = sys.version_info >= (3, 11)
    if supported:
        yield Check("python", OK, version)
    else:
        yield Check("python", FAIL, version, "install Python 3.11 or newer")


def system() -> Iterator[Check]:
    """Name the system where it is one that training was not tested on."""
    if platform.system() == "Windows":
        yield Check(
            "system",
            NOTE,
            "Windows: only runs of a single process are expected to work, and they are untested",
            "use Linux, or WSL, for sweeps, several devices and clusters",
        )


def devices() -> Iterator[Check]:
    """Name the GPUs, or the CPU; and a driver that torch cannot use."""
    import torch

    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        free = torch.cuda.mem_get_info(index)[0] / GIB
        total = gpu.total_memory / GIB
        yield Check("device", OK, f"cuda:{index} {gpu.name}, {free:.0f} of {total:.0f} GiB free")
    if torch.cuda.is_available():
        return
    if torch.backends.mps.is_available():
        yield Check("device", OK, "Apple GPU (mps)")
        return
    yield Check("device", OK, f"CPU ({torch.backends.cpu.get_cpu_capability()})")
    if shutil.which("nvidia-smi"):  # it comes with the driver
        reason = "torch finds no driver that suits it"
        if torch.version.cuda is None:
            reason = "this torch is built without CUDA"
        yield Check(
            "device",
            NOTE,
            f"there is an NVIDIA driver, but {reason}",
            "install torch for your CUDA version",
        )


def memory() -> Iterator[Check]:
    """Say how much memory is free, where the system tells, and what says how much a run takes."""
    table = Path("/proc/meminfo")
    if not table.is_file():
        return
    gib: dict[str, float] = {}
    for line in table.read_text().splitlines():
        name, _, size = line.partition(":")
        # Not MemFree: it leaves out what the system's caches give back to whoever asks.
        if name in ("MemAvailable", "MemTotal"):
            kilobytes = int(size.split()[0])
            gib[name] = kilobytes * 1024 / GIB
    free, total = gib["MemAvailable"], gib["MemTotal"]
    found = f"{free:.1f} of {total:.1f} GiB free; dynarank budget --memory says what a run takes"
    if free >= LEAST_MEMORY:
        yield Check("memory", OK, found)
    else:
        yield Check("memory", NOTE, found, "close other programs, or train on a larger machine")


def precisions() -> Iterator[Check]:
    """List the values of trainer.precision that a run would accept here."""
    from dynarank.config.schema import PRECISIONS, TrainerConfig
    from dynarank.errors import UserError
    from dynarank.runs.preflight import check_machine

    accepted = []
    for precision in PRECISIONS:
        try:
            check_machine(TrainerConfig(precision=precision))
            accepted.append(precision)
        except UserError:
            continue
    yield Check("precision", OK, f"trainer.precision: {', '.join(accepted)}")


def disk() -> Iterator[Check]:
    """Check the free space where runs and caches are written, each file system once."""
    on_device: dict[int, list[str]] = {}
    folders: dict[int, Path] = {}
    for name, wanted in _written_folders().items():
        folder = _nearest_existing(wanted)
        device = folder.stat().st_dev
        on_device.setdefault(device, []).append(name)
        folders.setdefault(device, folder)
    for device, names in on_device.items():
        free = shutil.disk_usage(folders[device]).free / GIB
        found = f"{free:.1f} GiB free for {', '.join(names)}"
        remedy = "make room: HF_HOME, DYNARANK_CACHE and hydra.run.dir move these"
        if free < LEAST_DISK:
            yield Check("disk", FAIL, found, remedy)
        elif free < ENOUGH_DISK:
            yield Check("disk", NOTE, found, remedy)
        else:
            yield Check("disk", OK, found)
    if not os.access(Path.cwd(), os.W_OK):
        remedy = "work elsewhere, or set hydra.run.dir=DIR"
        yield Check("disk", FAIL, f"{Path.cwd()} cannot be written", remedy)


def _written_folders() -> dict[str, Path]:
    """Return the folders that a run writes into, by what they are for."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return {
        "outputs": Path.cwd(),
        "hub's cache": Path(os.environ.get("HF_HOME") or cache / "huggingface"),
        "dynarank's cache": Path(os.environ.get("DYNARANK_CACHE") or cache / "dynarank"),
        "temporary": Path(tempfile.gettempdir()),
    }


def _nearest_existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def threads() -> Iterator[Check]:
    """Check that torch uses no more threads than there are cores for this process."""
    import torch

    allowed = allowed_cores()
    used = torch.get_num_threads()
    found = f"{used} threads on {allowed} of {os.cpu_count()} cores"
    if used > allowed:
        remedy = f"OMP_NUM_THREADS={allowed}"
        yield Check("threads", NOTE, f"{found}: they wait for each other", remedy)
    else:
        yield Check("threads", OK, found)


def allowed_cores() -> int:
    """Return how many cores this process may use, by its affinity and its container's limit."""
    from joblib import cpu_count

    # os.cpu_count() knows neither of them.
    return int(cpu_count())


def shared_memory() -> Iterator[Check]:
    """Check the shared memory through which data workers hand over batches."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return
    free = shutil.disk_usage(place).free / GIB
    found = f"{free:.2f} GiB free, which data workers share"
    if free < LEAST_SHARED_MEMORY:
        remedy = "keep trainer.workers=0, or start the container with --shm-size=1g"
        yield Check("/dev/shm", NOTE, found, remedy)
    else:
        yield Check("/dev/shm", OK, found)


def ignored() -> Iterator[Check]:
    """Note where the working folder is in a repository of git that would pick up runs."""
    # A file in it: the pattern outputs/ is for folders, and before the first run there is none.
    command = ["git", "check-ignore", "--quiet", "outputs/x"]
    try:
        code = subprocess.run(command, capture_output=True, timeout=GIT_SECONDS).returncode
    except (OSError, subprocess.TimeoutExpired):  # git is missing, or hangs
        return
    # Git says 128 where there is no repository, so that nothing can be committed.
    not_ignored = code == 1
    if not_ignored:
        yield Check(
            "git",
            NOTE,
            "outputs/ is not ignored here: runs would be committed",
            "echo outputs/ >> .gitignore",
        )
