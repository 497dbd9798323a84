"""Models in llama.cpp's format (GGUF), turned once into a folder that transformers loads.

transformers reads a GGUF's settings, words and blocks anew at every load: 24 to 70 s for 135
million parameters, against 0.3 s for the folder. Quantized blocks become float32, and are not
quantized again: what is trained on is what llama.cpp computes with.
"""

from __future__ import annotations

import json
import logging
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dynarank.durable_files import cache_folder, file_sha256, sync_folder, write_json
from dynarank.errors import UserError, kind_and_first_line

log = logging.getLogger(__name__)

SUFFIX = ".gguf"
WEIGHTS = "model.safetensors"
RECORD = "gguf.json"
"""Of a folder: the hashes of the GGUF that it was made of, and of the weights in it."""
FORM = 1
"""Counts up when what is written changes, so that older folders are made anew."""


def is_gguf(path: str | Path) -> bool:
    """Return whether a path names a GGUF file."""
    return str(path).lower().endswith(SUFFIX)


def unpacked(file: Path, field: str) -> Path:
    """Return the folder with the model of a GGUF file; it is made where it is not there yet.

    It lies in the cache under the file's hash, and is whole or not there at all.

    Args:
        field: the setting that the path came from, for errors.

    Raises:
        UserError: the file cannot be read as a causal language model, or the cache is damaged.
    """
    digest = file_sha256(file)
    folder = cache_folder() / "gguf" / f"{file.stem}-{digest[:16]}-{FORM}"
    if folder.is_dir():
        _check(folder)
        return folder
    if find_spec("gguf") is None:
        raise UserError(
            f"{field} = {file}: reading GGUF needs a package that is not installed: "
            "pip install 'dynarank[llm]'"
        )
    log.info("%s is turned into a folder for transformers, once: %s", file.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder.parent) as temporary:
        made = Path(temporary) / "model"
        _convert(file, made, field)
        write_json(made / RECORD, {"gguf": digest, WEIGHTS: file_sha256(made / WEIGHTS)})
        try:
            made.rename(folder)
        except OSError:  # another process was faster
            _check(folder)
    sync_folder(folder.parent)
    return folder


def _check(folder: Path) -> None:
    """Raise `UserError` where the weights are not those that were written."""
    try:
        recorded = json.loads((folder / RECORD).read_text())[WEIGHTS]
        sound = recorded == file_sha256(folder / WEIGHTS)
    except (OSError, ValueError, LookupError):
        sound = False
    if not sound:
        raise UserError(f"{folder} is damaged. Delete it: it is made again")


def _convert(file: Path, folder: Path, field: str) -> None:
    """Write weights in float32, settings and tokenizer of a GGUF file into a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options: dict[str, Any] = {"gguf_file": file.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, quantization_config=GgufConfig(dequantize=True), **options
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    except Exception as error:  # a damaged file raises any kind
        raise UserError(
            f"{field} = {file}: no language model can be read from it: {kind_and_first_line(error)}"
        ) from error
    # One file whatever the size, for its hash.
    model.float().save_pretrained(folder, max_shard_size="1TB")
    tokenizer.save_pretrained(folder)
