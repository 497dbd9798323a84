"""What is checked before anything slow: the output folder, the machine, and where things are."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from dynarank.config.given import given_settings
from dynarank.config.schema import TrainConfig, TrainerConfig
from dynarank.config.unused import unused_settings
from dynarank.errors import UserError, first_line
from dynarank.pretrained.hub import (
    HubSilent,
    Source,
    hub_silent_message,
    locate,
    warn_of_remote_code,
)
from dynarank.run_folder import read_overrides
from dynarank.runs.library_internals import cpu_computes_bf16, has_cpp_compiler
from dynarank.tasks.sources import locate_data

log = logging.getLogger(__name__)


def check_output_dir(folder: str) -> Path:
    """Make the run's folder and write into it once.

    Raises:
        UserError: it cannot be made or written.
    """
    path = Path(folder)
    probe = path / ".writable"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # another rank may have removed it
    except OSError as error:
        raise UserError(
            f"output_dir = {folder}: cannot be written ({error.strerror}). Choose another: "
            "hydra.run.dir=DIR"
        ) from None
    return path


def check_machine(config: TrainerConfig) -> None:
    """Raise `UserError` for an accelerator or a precision that cannot be had here."""
    if config.precision == "16-mixed" and config.strategy == "fsdp":
        # Lightning has no loss scaler for a sharded model, and says so after the loading.
        raise UserError(
            "trainer.precision = 16-mixed: does not work with trainer.strategy = fsdp. Use "
            "trainer.precision=bf16-mixed, or trainer.strategy=ddp"
        )
    available = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(config.accelerator, True):  # auto and cpu always are
        raise UserError(
            f"trainer.accelerator = {config.accelerator}: this machine has none. "
            "Use trainer.accelerator=auto"
        )
    on_gpu = available["gpu"] and config.accelerator in ("auto", "gpu")
    remedy = "Use trainer.precision=32-true"
    if config.precision == "16-mixed" and not on_gpu:
        raise UserError(
            f"trainer.precision = 16-mixed needs a CUDA GPU, and this run has none. {remedy}"
        )
    if config.precision == "bf16-mixed" and not _computes_bf16(on_gpu):
        raise UserError(
            "trainer.precision = bf16-mixed: this machine computes no bfloat16 in hardware. "
            f"{remedy}"
        )


def _computes_bf16(on_gpu: bool) -> bool:
    """Return whether the device that is used has bfloat16 in hardware."""
    if on_gpu:
        # By default torch says yes to emulation too, which older GPUs have.
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_computes_bf16()


def check_compiler(config: TrainerConfig) -> None:
    """Raise `UserError` for `trainer.compile` where torch finds no C++ compiler.

    Torch itself would say so only after everything is loaded.
    """
    if config.compile and not has_cpp_compiler():
        raise UserError(
            "trainer.compile = true needs a C++ compiler. Install g++, or use trainer.compile=false"
        )


def best_device() -> str:
    """Return the name of a GPU where there is one, as torch names it; else of the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def named_device(name: str | None) -> torch.device:
    """Return the device of that name, or the best one for None.

    Raises:
        UserError: this machine has no such device.
    """
    try:
        # torch.device takes cuda:9 anywhere. Only a tensor shows whether the device is there.
        return torch.empty(0, device=name or best_device()).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {first_line(error)}") from None


def find_model(config: TrainConfig) -> Source:
    """Return where the model is. Raises `UserError` where it is nowhere."""
    source = locate(
        "models", "model.path", config.model.path, config.hub.root, config.model.revision
    )
    warn_of_remote_code(config.model, source)
    return source


def locate_model(config: TrainConfig) -> Source:
    """Return where the model is, once the data is known to be somewhere too.

    So one error names all that is missing.

    Raises:
        UserError: either is nowhere, and the hub does not answer; the message says what to do.
    """
    missing = []
    try:
        locate_data(config.task, config.hub)
    except HubSilent as error:
        missing.append(error)
    try:
        source = find_model(config)
    except HubSilent as error:
        missing.append(error)
    if missing:
        raise UserError(hub_silent_message(missing))
    return source


def warn_of_unused(config: TrainConfig, folder: Path) -> None:
    """Warn of each setting that was given for this run, and changes nothing in it.

    Defaults stand in the configuration of every method, and are no reason for a warning.

    Args:
        config: the run's.
        folder: the run's, where Hydra has recorded what was typed.
    """
    overrides = read_overrides(folder)
    if overrides is None:
        return
    unused = unused_settings(config)
    for setting, given in given_settings(overrides).items():
        if setting in unused:
            log.warning("%s: %s", given, unused[setting])
