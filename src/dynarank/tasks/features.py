"""Features of rows: encoded once, and cached on disk under a key of all that they depend on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

ENCODING = 1
"""The version of our own encoding: raised when features change, so that older ones are not used."""


def token_counts(features: Dataset) -> np.ndarray:
    """Return the number of tokens of each feature, (features)."""
    from pyarrow import compute

    return np.asarray(compute.list_value_length(features.with_format("arrow")[:]["input_ids"]))


def cached_map(
    dataset: Dataset,
    function: Callable[..., Any],
    key: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
) -> Dataset:
    """Return `dataset.map(function)` over batches with row numbers, cached on disk.

    The cache goes by a key of our own (the rows, the tokenizer, `key`), since the tokenizer's
    pickle, which datasets would hash, changes with every use of the tokenizer.

    Args:
        dataset: the rows.
        function: takes a batch of rows and their numbers, and returns columns of features.
        key: the settings that the function depends on.
        tokenizer: the tokenizer that the function uses.
    """
    import datasets
    from datasets.fingerprint import Hasher
    from pyarrow import ArrowException

    parts = (ENCODING, dataset._fingerprint, *_tokenizer_key(tokenizer), *key)
    fingerprint = Hasher.hash([str(part) for part in parts])
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "dynarank-features"
    folder.mkdir(parents=True, exist_ok=True)
    cached = folder / f"{fingerprint}.arrow"

    def mapped() -> Dataset:
        return dataset.map(
            function,
            batched=True,
            with_indices=True,
            remove_columns=dataset.column_names,
            new_fingerprint=fingerprint,
            cache_file_name=str(cached),
        )

    try:
        return mapped()
    except (ArrowException, OSError) as error:
        if not cached.is_file():
            raise
        reason = str(error).splitlines()[0]
        log.warning("%s was damaged, and is made anew: %s", cached, reason)
        cached.unlink()
        return mapped()


def _tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    if tokenizer.is_fast:
        vocabulary = tokenizer.backend_tokenizer.to_str()
    else:
        vocabulary = sorted(tokenizer.get_vocab().items())
    return (type(tokenizer).__name__, vocabulary)
