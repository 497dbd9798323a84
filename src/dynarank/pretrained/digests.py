"""Digests of what a result depends on: the weights of the base model, and the tokenizer."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dynarank.pretrained.quantization import quantized_modules

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WHOLE = "all:"
"""How a digest of all elements begins."""
SAMPLES = 256
"""Elements of a parameter in the older digest, at least, where it has so many."""
THREADS = min(8, os.cpu_count() or 1)
DIGITS = 16
PROBES = (
    "The quick brown fox, aged 7, doesn't jump over 12.5 lazy dogs!",
    "  Two  spaces, a\ttab and a\nnew line; \N{EM DASH} and \N{EURO SIGN}100.",
    "\N{LATIN CAPITAL LETTER A WITH DIAERESIS}rger na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve "
    "\N{CYRILLIC SMALL LETTER DE}\N{CYRILLIC SMALL LETTER A} "
    "\N{CJK UNIFIED IDEOGRAPH-4F60}\N{CJK UNIFIED IDEOGRAPH-597D}",
)
"""Texts whose tokens stand for how a tokenizer splits and normalizes."""
SPECIAL_TOKENS = ("pad", "bos", "eos", "cls", "sep", "unk", "mask")


def weights_digest(model: nn.Module, head: Sequence[str]) -> str:
    """Return a digest of every element of a model's parameters and buffers, as float32.

    The modules in `head` are left out, for the seed makes them; so are quantized weights, which
    another device may round otherwise. Checksums are taken by several
    threads: 0.4 s for 125 million parameters on one core.
    """
    head = [*head, *quantized_modules(model)]
    tensors = {}
    for name, tensor in model.state_dict().items():
        # A state dict may also hold a module's extra state, which can be anything.
        if torch.is_tensor(tensor) and not _is_in(name, head):
            tensors[name] = tensor
    names = sorted(tensors)
    # zlib lets go of Python's lock while it works, so that threads do run side by side.
    with ThreadPoolExecutor(THREADS) as pool:
        checksums = list(pool.map(_checksum, [tensors[name] for name in names]))
    digest = hashlib.sha256()
    for name, checksum in zip(names, checksums, strict=True):
        digest.update(f"{name}{tuple(tensors[name].shape)}:{checksum},".encode())
    return WHOLE + digest.hexdigest()[:DIGITS]


def same_weights(recorded: str, model: nn.Module, head: Sequence[str]) -> bool:
    """Return whether a model has the weights whose digest was recorded, in whichever form."""
    present = weights_digest if recorded.startswith(WHOLE) else _sampled_digest
    return recorded == present(model, head)


def _checksum(tensor: Tensor) -> int:
    """Return the CRC-32 of a tensor's elements as float32. It tells any one that changed."""
    # numpy has no bfloat16. float32 holds every number of the narrower types exactly.
    elements = tensor.detach().float().contiguous().cpu()
    return zlib.crc32(elements.numpy().tobytes())


def _is_in(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _sampled_digest(model: nn.Module, head: Sequence[str]) -> str:
    """Return the digest that earlier versions recorded, of some elements of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if _is_in(name, head):
            continue
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // SAMPLES)]
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of the vocabulary, of the special tokens, and of how texts are split.

    It is of what a tokenizer does rather than of its files, so that it stays the same when the
    tokenizer is saved and loaded again.
    """
    digest = hashlib.sha256()
    for token, index in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{token!r}:{index},".encode())
    for name in SPECIAL_TOKENS:
        digest.update(f"{name}:{getattr(tokenizer, f'{name}_token_id', None)},".encode())
    for text in PROBES:
        digest.update(repr(tokenizer.encode(text, add_special_tokens=False)).encode())
    return digest.hexdigest()[:DIGITS]
