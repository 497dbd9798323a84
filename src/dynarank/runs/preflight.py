"""What is checked before anything slow: the output folder, the machine, and where model and data come from."""

from __future__ import annotations

from pathlib import Path

import torch

from dynarank.config.schema import TrainConfig, TrainerConfig
from dynarank.errors import UserError
from dynarank.pretrained.hub import (
    HubSilent,
    Source,
    hub_silent_message,
    locate,
    warn_of_remote_code,
)
from dynarank.tasks.sources import locate_data


def check_output_dir(folder: str) -> Path:
    """Make the run's folder and write into it once. Raises `UserError` where that fails."""
    path = Path(folder)
    probe = path / ".writable"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # another rank's may be gone
    except OSError as error:
        raise UserError(
            f"output_dir = {folder}: cannot be written ({error.strerror}). Choose another: hydra.run.dir=DIR"
        ) from None
    return path


def check_machine(config: TrainerConfig) -> None:
    """Refuse an accelerator or a precision that this machine lacks (`UserError`)."""
    available = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(config.accelerator, True):
        raise UserError(
            f"trainer.accelerator = {config.accelerator}: this machine has none. Use trainer.accelerator=auto"
        )
    on_gpu = available["gpu"] and config.accelerator in ("auto", "gpu")
    remedy = "Use trainer.precision=32-true"
    if config.precision == "16-mixed" and not on_gpu:
        raise UserError(
            f"trainer.precision = 16-mixed needs a CUDA GPU, and this run has none. {remedy}"
        )
    if config.precision == "bf16-mixed" and not (
        torch.cuda.is_bf16_supported(False) if on_gpu else _cpu_has_bf16()
    ):
        raise UserError(
            f"trainer.precision = bf16-mixed: this machine computes no bfloat16 in hardware. {remedy}"
        )


def check_compiler(config: TrainerConfig) -> None:
    """Refuse `trainer.compile` where torch finds no C++ compiler (`UserError`), which it would say after loading."""
    if not config.compile:
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "trainer.compile = true needs a C++ compiler. Install g++, or use trainer.compile=false"
        ) from None


def best_device() -> str:
    """A GPU where there is one, as torch names it; else the CPU."""
    return (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )


def named_device(name: str | None) -> torch.device:
    """The device of that name, or the best; `UserError` where this machine has none such."""
    try:
        return torch.empty(0, device=name or best_device()).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None


def _cpu_has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def find_model(config: TrainConfig) -> Source:
    """Where the model is. Raises `UserError`."""
    source = locate(
        "models", "model.path", config.model.path, config.hub.root, config.model.revision
    )
    warn_of_remote_code(config.model, source)
    return source


def locate_model(config: TrainConfig) -> Source:
    """Where the model is, once the data is known to be somewhere too, so that one error names all that is missing.

    Raises:
        UserError: either is nowhere, and the hub does not answer; says what to do.
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
