"""Features of rows: encoded once, and cached on disk under a key of all that they depend on."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynarank.durable_files import file_sha256, made_cache
from dynarank.errors import UserError, first_line

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import BatchEncoding, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CACHE = "HF_DATASETS_CACHE"
"""The environment's variable that names the folder of the cache."""
ENCODING = 2
"""The version of our own encoding: raised when features change, so that older ones are not used."""
KEY_SETTINGS = (
    "truncation_side",
    "padding_side",
    "split_special_tokens",
    "model_input_names",
    "src_lang",
    "tgt_lang",
)
"""Settings of a tokenizer that features depend on and that do not stand in its own file."""


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

    Raises:
        UserError: the cache cannot be written.
    """
    import datasets
    from datasets.fingerprint import Hasher
    from pyarrow import ArrowException

    parts = (ENCODING, dataset._fingerprint, *_tokenizer_key(tokenizer), *key)
    # As texts, for datasets hashes pickles, and equal objects may be pickled differently.
    fingerprint = Hasher.hash([str(part) for part in parts])
    # Of rows that are in memory alone, as those of a file, datasets itself would keep nothing.
    place = Path(datasets.config.HF_DATASETS_CACHE) / "dynarank-features"
    # A cache that may only be read still serves with what lies in it.
    folder = made_cache(place, CACHE, to_write=False)
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
        # No file that could be damaged: the cache cannot be written, or the rows are at fault.
        if not cached.is_file():
            made_cache(folder, CACHE)
            raise
        log.warning("%s was damaged, and is made anew: %s", cached, first_line(error))
        cached.unlink()
        return mapped()


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    *texts: list[str],
    rows: Sequence[int],
    **options: Any,
) -> BatchEncoding:
    """Return `tokenizer(*texts, **options)`, with the names of special tokens read as plain text.

    Otherwise a text that holds '</s>' would end there. A tokenizer that cannot spell such a name
    gives its token for unknown words.

    Args:
        tokenizer: the tokenizer.
        texts: texts, or texts and second texts.
        rows: the row number of each text, for errors.
        options: the tokenizer's; `text_target` among them gives targets.

    Raises:
        UserError: A text holds a special token's name, and the tokenizer has no other way to read
            it.
    """
    all_texts = chain(*texts, options.get("text_target") or [])
    # Few texts hold one, and the others are spared the second look below.
    names = "|".join(re.escape(token) for token in tokenizer.all_special_tokens)
    if not names or not any(re.search(names, text) for text in all_texts):
        return tokenizer(*texts, **options)
    if not tokenizer.is_fast:
        return tokenizer(*texts, split_special_tokens=True, **options)
    encoded = tokenizer(
        *texts, split_special_tokens=True, return_special_tokens_mask=True, **options
    )
    # The token of an unknown word may stand in any text.
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    owners = encoded.get("overflow_to_sample_mapping", range(len(encoded["input_ids"])))
    masks = encoded.pop("special_tokens_mask")
    for owner, ids, mask in zip(owners, encoded["input_ids"], masks, strict=True):
        for place, (token, is_added) in enumerate(zip(ids, mask, strict=True)):
            if is_added or token not in special:
                continue
            if tokenizer.unk_token_id is None:
                name = tokenizer.convert_ids_to_tokens(token)
                raise UserError(
                    f"row {rows[owner]}: the text holds {name!r}, which the tokenizer reads as its "
                    "special token. Mend or drop the row"
                )
            ids[place] = tokenizer.unk_token_id
    return encoded


def _tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """Return all that the tokens of a text depend on: the tokenizer, its settings, its version."""
    import tokenizers
    import transformers

    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        for name in ("truncation", "padding"):  # those of the last call
            content.pop(name, None)
    else:
        content = _saved_content(tokenizer)
    return (
        type(tokenizer).__name__,
        json.dumps(content, sort_keys=True),
        sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()),
        [getattr(tokenizer, name, None) for name in KEY_SETTINGS],
        (transformers.__version__, tokenizers.__version__),
    )


def _saved_content(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return digests of the files that hold a tokenizer, by name, without those that hold paths."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        digests = {}
        for path in sorted(Path(folder).iterdir()):
            # It holds paths beside the settings, which are taken from `init_kwargs` below.
            if path.name != "tokenizer_config.json":
                digests[path.name] = file_sha256(path)
    for name, value in tokenizer.init_kwargs.items():
        if not name.endswith(("_file", "_path", "_hash")):
            digests[f"setting {name}"] = str(value)
    return digests
