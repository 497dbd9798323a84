"""Models that come as one GGUF file, as llama.cpp reads them: unpacked once, and kept.

A GGUF file holds weights in few bits, their configuration and their tokenizer. transformers unpacks
it into float32, which takes a 135 M model some twenty seconds. What comes out is kept in the cache,
in the usual layout, under the file's hash.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from dynarank.durable_files import file_sha256
from dynarank.errors import UserError, kind_and_first_line

log = logging.getLogger(__name__)

ENDING = ".gguf"
DONE = "unpacked_from"
"""A file of the kept folder, written last: it names the file that was unpacked."""


def cache_folder() -> Path:
    """Return where unpacked models are kept: in $DYNARANK_CACHE, else in ~/.cache/dynarank."""
    home = os.environ.get("DYNARANK_CACHE") or Path.home() / ".cache" / "dynarank"
    return Path(home) / "gguf"


def unpacked(field: str, file: Path) -> Path:
    """Return the folder of a GGUF file's model in the usual layout, unpacked at the first call.

    Args:
        field: the setting that named the file, for errors.

    Raises:
        UserError: the package gguf is missing, the file is damaged, or no kind that is known.
    """
    digest = file_sha256(file)
    folder = cache_folder() / f"{file.stem}-{digest[:16]}"
    if (folder / DONE).is_file():
        return folder
    log.info("%s: unpacked into %s, once; this takes a while", file.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        _unpack(field, file, staging)
        (staging / DONE).write_text(f"{file.name} {digest}\n", encoding="utf-8")
        _move(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _unpack(field: str, file: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer into a folder."""
    import torch
    import transformers

    place, name = str(file.parent), file.name
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=name)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            place,
            gguf_file=name,
            dtype=torch.float32,
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
        model.config.quantization_config = None
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except ImportError:
        raise UserError(
            f"{field} = {file}: GGUF files are read by the package gguf, which is not installed: "
            "pip install 'dynarank[llm]'"
        ) from None
    except Exception as error:  # a damaged file raises any kind
        raise UserError(
            f"{field} = {file}: cannot be read as a GGUF model ({kind_and_first_line(error)})"
        ) from error


def _move(staging: Path, folder: Path) -> None:
    """Move the folder to its place, unless another process was faster."""
    try:
        staging.rename(folder)
    except OSError:
        if not (folder / DONE).is_file():
            raise
