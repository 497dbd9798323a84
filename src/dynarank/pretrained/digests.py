"""Digests of what a result depends on: the weights of the base model, and the tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLES = 256
"""Elements of a parameter that enter the digest, at least, where it has so many."""
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
    """Return a digest of evenly spaced elements of every parameter.

    It tells base models apart, and takes no time for large ones. The modules in `head` are left
    out, for the seed makes them.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if any(name.startswith(f"{module}.") for module in head):
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
        digest.update(f"{token!r}:{index},".encode("utf-8", "backslashreplace"))
    for name in SPECIAL_TOKENS:
        digest.update(f"{name}:{getattr(tokenizer, f'{name}_token_id', None)},".encode())
    for text in PROBES:
        digest.update(repr(tokenizer.encode(text, add_special_tokens=False)).encode())
    return digest.hexdigest()[:DIGITS]
