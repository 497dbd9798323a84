"""Models that come as one GGUF file, as llama.cpp reads them: unpacked once, and kept.

A GGUF file holds weights in few bits, their configuration and their tokenizer. transformers unpacks
it into float32, which takes a 135 M model some twenty seconds. What comes out is kept in the cache,
in the usual layout, under the file's hash.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from dynarank.durable_files import CACHE, cache_folder, file_sha256, made_cache, make_readable
from dynarank.errors import UserError, kind_and_first_line

log = logging.getLogger(__name__)

ENDING = ".gguf"
WEIGHTS = "model.safetensors"
DONE = "unpacked_from"
"""A file of the kept folder, written last: the file that was unpacked, its hash, and the hash of
the weights that came out."""


def unpacked(field: str, file: Path) -> Path:
    """Return the folder of a GGUF file's model in the usual layout, unpacked at the first call.

    Args:
        field: the setting that named the file, for errors.

    Raises:
        UserError: the package gguf is missing, the file is damaged, or no kind that is known; or
            what is kept is not what was written.
    """
    digest = file_sha256(file)
    folder = cache_folder() / "gguf" / f"{file.stem}-{digest[:16]}-float32"
    if file_hash(folder) is not None:
        return folder
    log.info("%s: unpacked into %s, once; this takes a while", file.name, folder)
    # Beside its place, for a rename is all or nothing only within one file system.
    staging = Path(tempfile.mkdtemp(dir=made_cache(folder.parent, CACHE)))
    try:
        _unpack(field, file, staging)
        record = f"{file.name}\n{digest}\n{file_sha256(staging / WEIGHTS)}\n"
        (staging / DONE).write_text(record, encoding="utf-8")
        # Only its owner may enter a folder of mkdtemp, and several users may share a cache.
        make_readable(staging, also_folder=True)
        _move(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def file_hash(folder: Path) -> str | None:
    """Return the hash of the GGUF file that a folder was unpacked from; None for other folders.

    Raises:
        UserError: the weights in it are not those that were written.
    """
    if not (folder / DONE).is_file():
        return None
    recorded = (folder / DONE).read_text(encoding="utf-8").splitlines()
    weights = folder / WEIGHTS
    if len(recorded) != 3 or not weights.is_file() or file_sha256(weights) != recorded[2]:
        raise UserError(f"{folder} is damaged. Delete it: it is unpacked again at the next run")
    return recorded[1]


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
        # Left there, the saved config.json would call the plain weights quantized.
        model.config.quantization_config = None
        model.save_pretrained(folder, max_shard_size="1TB")  # one file, for its hash
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
