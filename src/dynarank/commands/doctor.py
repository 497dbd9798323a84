"""Whether this machine can train: versions, devices, precisions, hub and data, tracker, disk, threads; on one screen.

python -m dynarank.doctor           # exit code 1 if something will fail
python -m dynarank.doctor --json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynarank.commands.versions import known_bad, requirements
from dynarank.config.redaction import redact

OK, NOTE, FAIL = "ok", "note", "fail"
"""A note says what to know; what fails will end a run."""
SECONDS = 30.0
"""For a check, after which it counts as failed: a dead network drive, or a driver that hangs."""
INSTALL = "pip install -c constraints.txt -e '.[train]'"
GIB = 2**30
LEAST_DISK, ENOUGH_DISK = 1.0, 10.0
"""GiB: below the first a run will fail, below the second a large model's may."""
LEAST_SHM = 0.25
"""GiB of shared memory that workers want; containers often have 0.06."""


@dataclass
class Check:
    """A line of the report."""

    name: str
    status: str
    found: str
    remedy: str = ""


def python() -> Iterator[Check]:
    version = sys.version.split()[0]
    fits = sys.version_info >= (3, 11)
    yield Check("python", OK if fits else FAIL, version, "" if fits else "needs 3.11 or newer")


def packages() -> Iterator[Check]:
    """One line for all that fit their ranges, one for each that does not."""
    found = requirements()
    if not found:
        yield Check(
            "packages",
            NOTE,
            "dynarank itself is not installed, so that its requirements are unknown",
            INSTALL,
        )
        return
    for one in found:
        if one.trouble:
            command = (
                INSTALL
                if one.extra and one.version is None
                else f"pip install '{one.name}>={one.least}'"
            )
            yield Check("package", FAIL, one.trouble, command)
    fitting = {one.name: one.version for one in found if not one.trouble}
    first = ", ".join(
        f"{name} {fitting[name]}"
        for name in ("torch", "lightning", "transformers", "peft")
        if name in fitting
    )
    yield Check("packages", OK, f"{len(fitting)} fit: {first}")


def devices() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        mps = torch.backends.mps.is_available()
        yield Check(
            "device",
            OK,
            "Apple GPU (mps)" if mps else f"CPU ({torch.backends.cpu.get_cpu_capability()})",
        )
        if not mps and shutil.which("nvidia-smi"):
            why = (
                "this torch is built without CUDA"
                if torch.version.cuda is None
                else "torch finds no driver that suits it"
            )
            yield Check(
                "device",
                NOTE,
                f"there is an NVIDIA driver, but {why}",
                "install torch for your CUDA version",
            )
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        free = torch.cuda.mem_get_info(index)[0] / GIB
        yield Check(
            "device",
            OK,
            f"cuda:{index} {gpu.name}, {free:.0f} of {gpu.total_memory / GIB:.0f} GiB free",
        )


def precisions() -> Iterator[Check]:
    from dynarank.config.schema import PRECISIONS, TrainerConfig
    from dynarank.errors import UserError
    from dynarank.runs.preflight import check_machine

    fit = []
    for precision in PRECISIONS:
        try:
            check_machine(TrainerConfig(precision=precision))
            fit.append(precision)
        except UserError:
            continue
    yield Check("precision", OK, f"trainer.precision: {', '.join(fit)}")


def sources() -> Iterator[Check]:
    """Local hub, hub, packaged model: a failure only where all three are missing."""
    local, model = local_hub(), packaged_model()
    yield from (local, model)
    from dynarank.pretrained.connection import why_silent

    silent = why_silent()
    if silent is None:
        yield Check("hub", OK, "answers")
        return
    lost = local.status != OK and model.status != OK
    remedy = "set DYNARANK_HUB=DIR to a local copy" + (
        "" if model.status != OK else "; experiment=quickstart needs neither"
    )
    yield Check("hub", FAIL if lost else NOTE, f"does not answer ({silent[:100]})", remedy)


def local_hub() -> Check:
    root = os.environ.get("DYNARANK_HUB")
    if not root:
        return Check(
            "local hub",
            NOTE,
            "DYNARANK_HUB is not set, so models and data come from the hub and its cache",
        )
    folders = [Path(root).expanduser() / kind for kind in ("models", "datasets")]
    if not any(folder.is_dir() for folder in folders):
        return Check(
            "local hub",
            FAIL,
            f"DYNARANK_HUB={root}: holds neither models/ nor datasets/",
            "correct it, or unset it",
        )
    counts = [
        f"{sum(path.is_dir() for path in folder.glob('*/*'))} {folder.name}" for folder in folders
    ]
    return Check("local hub", OK, f"{root}: {', '.join(counts)}")


def packaged_model() -> Check:
    """The quick start's, with its hash."""
    from omegaconf import OmegaConf

    from dynarank.config.folders import conf_folder
    from dynarank.errors import UserError
    from dynarank.pretrained.hub import ModelConfig, check_sha256, locate

    stated: Any = OmegaConf.load(conf_folder() / "model" / "minilm.yaml")
    try:
        source = locate("models", "model.path", stated.path, None)
        check_sha256(ModelConfig(path=stated.path, sha256=stated.sha256), source)
    except UserError as error:
        reason, _, remedy = str(error).partition(". ")
        return Check("minilm", NOTE, reason, remedy)
    return Check("minilm", OK, "the quick start's model is installed, and has the expected hash")


def tracker() -> Iterator[Check]:
    from dynarank.config.schema import WANDB_MODES
    from dynarank.training.wandb_mode import mode_and_reason

    mode, reason = mode_and_reason("auto")
    if mode not in (*WANDB_MODES, "shared", "dryrun", "run"):
        yield Check(
            "tracker",
            FAIL,
            f"{reason}={mode}: no mode of W&B's",
            "unset WANDB_MODE, or set logger.mode=offline",
        )
    else:
        yield Check("tracker", OK, f"W&B {mode} ({reason})")


def disk() -> Iterator[Check]:
    """Free space where runs and caches are written, each file system once; and whether the first can be written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    places = {
        "outputs": Path.cwd(),
        "hub's cache": Path(os.environ.get("HF_HOME") or cache / "huggingface"),
        "dynarank's cache": Path(os.environ.get("DYNARANK_CACHE") or cache / "dynarank"),
        "temporary": Path(tempfile.gettempdir()),
    }
    seen: dict[int, list[str]] = {}
    for name, path in places.items():
        there = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
        seen.setdefault(there.stat().st_dev, []).append(name)
        places[name] = there
    for names in seen.values():
        free = shutil.disk_usage(places[names[0]]).free / GIB
        status = FAIL if free < LEAST_DISK else NOTE if free < ENOUGH_DISK else OK
        remedy = (
            ""
            if status == OK
            else "make room: HF_HOME, DYNARANK_CACHE and hydra.run.dir move these"
        )
        yield Check("disk", status, f"{free:.1f} GiB free for {', '.join(names)}", remedy)
    if not os.access(Path.cwd(), os.W_OK):
        yield Check(
            "disk",
            FAIL,
            f"{Path.cwd()} cannot be written",
            "work elsewhere, or set hydra.run.dir=DIR",
        )


def threads() -> Iterator[Check]:
    import torch

    allowed = allowed_cores()
    used = torch.get_num_threads()
    found = f"{used} threads on {allowed:g} of {os.cpu_count()} cores"
    if used > allowed:
        yield Check(
            "threads",
            NOTE,
            f"{found}: they wait for each other",
            f"OMP_NUM_THREADS={max(1, int(allowed))}",
        )
    else:
        yield Check("threads", OK, found)


def allowed_cores(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that this process may use: its affinity, less what a container's limit (cgroup 2 or 1) leaves of them."""
    cores = float(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((root / name).read_text() for name in names).split()
            limit = float(quota) / float(period)
        except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
            continue
        if limit > 0:
            cores = min(cores, limit)
    return cores


def shared_memory() -> Iterator[Check]:
    place = Path("/dev/shm")
    if not place.is_dir():
        return
    free = shutil.disk_usage(place).free / GIB
    few = free < LEAST_SHM
    remedy = "keep trainer.workers=0, or start the container with --shm-size=1g" if few else ""
    yield Check(
        "/dev/shm", NOTE if few else OK, f"{free:.2f} GiB free, which data workers share", remedy
    )


def ignored() -> Iterator[Check]:
    """Whether git, where the working folder is in a repository, would pick up runs."""
    command = ["git", "check-ignore", "--quiet", "outputs/x"]
    try:
        code = subprocess.run(command, capture_output=True, timeout=SECONDS / 2).returncode
    except (OSError, subprocess.TimeoutExpired):  # no git
        return
    if code == 1:
        yield Check(
            "git",
            NOTE,
            "outputs/ is not ignored here: runs would be committed",
            "echo outputs/ >> .gitignore",
        )


CHECKS = (
    python,
    packages,
    devices,
    precisions,
    sources,
    tracker,
    disk,
    threads,
    shared_memory,
    ignored,
)


def examine(
    checks: Sequence[Callable[[], Iterator[Check]]] = CHECKS, seconds: float = SECONDS
) -> list[Check]:
    """Every check's findings, secrets redacted; one that raises or takes too long is a finding of its own.

    Where a release that is known to be bad is installed, nothing is imported.
    """
    checks = [python, packages] if known_bad() else checks
    found = [one for check in checks for one in _within(seconds, check)]
    return [Check(one.name, one.status, redact(one.found), redact(one.remedy)) for one in found]


def _within(seconds: float, check: Callable[[], Iterator[Check]]) -> list[Check]:
    findings: list[Check] = []
    name = check.__name__.replace("_", " ")

    def work() -> None:
        try:
            findings.extend(check())
        except ImportError as error:
            findings.append(
                Check(name, FAIL, f"not looked at, for {error.name or error} is missing", INSTALL)
            )
        except Exception as error:  # a finding too: whatever broke here would break a run
            findings.append(Check(name, FAIL, f"{type(error).__name__}: {error}".splitlines()[0]))

    thread = threading.Thread(
        target=work, daemon=True
    )  # a thread that hangs does not keep the process
    thread.start()
    thread.join(seconds)
    return [
        *findings,
        *([Check(name, FAIL, f"no answer within {seconds:g} s")] if thread.is_alive() else []),
    ]


def report(found: Sequence[Check]) -> str:
    """A line a finding, its remedy below."""
    lines = []
    for one in found:
        lines.append(f"{one.status:<5} {one.name:<10} {one.found}")
        if one.remedy:
            lines.append(f"{'':<16} -> {one.remedy}")
    failed = sum(one.status == FAIL for one in found)
    return "\n".join([*lines, f"{failed} will fail" if failed else "Nothing here will fail."])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the findings; exits with 1 if something will fail."""
    parser = argparse.ArgumentParser("python -m dynarank.doctor", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--json", action="store_true", help="for scripts")
    options = parser.parse_args(arguments)
    found = examine()
    failed = any(one.status == FAIL for one in found)
    print(
        json.dumps({"ok": not failed, "checks": [asdict(one) for one in found]}, indent=2)
        if options.json
        else report(found)
    )
    sys.exit(int(failed))
