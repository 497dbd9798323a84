"""Features of texts: special tokens that are written in them, and what the cache goes by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset
from tiny import write_tokenizer

from dynarank.errors import UserError
from dynarank.tasks.features import cached_map, encode_texts


def word_tokenizer(folder: Path, **options: Any) -> Any:
    """A tokenizer whose vocabulary holds '</s>' as a word: no setting keeps it from that."""
    from transformers import AutoTokenizer

    write_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder, **options)


def bytewise_tokenizer() -> Any:
    """A tokenizer of bytes, which can spell anything; '</s>' is its special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"</s>": 0, "<pad>": 1} | {letter: i + 2 for i, letter in enumerate(letters)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")


def test_a_special_token_in_a_text_is_spelled() -> None:
    tokenizer = bytewise_tokenizer()
    text = "good </s> film"
    assert 0 in tokenizer(text)["input_ids"]
    ids = encode_texts(tokenizer, [text], rows=[0])["input_ids"][0]
    assert 0 not in ids
    assert tokenizer.decode(ids) == text


def test_a_special_token_that_cannot_be_spelled_is_unknown(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(tmp_path)
    tokenizer.backend_tokenizer.pre_tokenizer = whitespace()
    texts = ["good </s> film", "good film"]
    encoded = encode_texts(tokenizer, texts, rows=[0, 1], truncation=True, max_length=9)
    tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in encoded["input_ids"]]
    assert tokens == [["<s>", "good", "<unk>", "film", "</s>"], ["<s>", "good", "film", "</s>"]]
    assert "special_tokens_mask" not in encoded


def test_without_a_token_for_unknown_words_the_row_is_named(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(tmp_path)
    tokenizer.backend_tokenizer.pre_tokenizer = whitespace()
    tokenizer.unk_token = None
    with pytest.raises(UserError, match=r"row 7: the text holds '</s>'"):
        encode_texts(tokenizer, ["good", "good </s> film"], rows=[6, 7])


def whitespace() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.WhitespaceSplit()


@pytest.mark.parametrize(
    "change",
    [
        {"truncation_side": "left"},
        {"padding_side": "left"},
        {"unk_token": "cat"},
        {"mask_token": "[MASK]"},
    ],
)
def test_features_go_by_all_that_the_tokenizer_does(change: dict[str, str], tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": ["the cat sat on a mat"]})

    def ids(**options: str) -> tuple[str, list[int]]:
        tokenizer = word_tokenizer(tmp_path, **options)

        def encoded(batch: dict[str, list[str]], rows: list[int]) -> dict[str, Any]:
            return dict(tokenizer(batch["text"], truncation=True, max_length=4))

        features = cached_map(rows, encoded, (), tokenizer)
        return features._fingerprint, features["input_ids"][0]

    before, changed = ids(), ids(**change)
    assert before == ids()
    assert before[0] != changed[0]
    if "truncation_side" in change:
        assert before[1] != changed[1]


def test_features_do_not_go_by_what_the_tokenizer_did_last(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": ["the cat sat"]})
    fingerprints = set()
    for length in (2, 3, None):
        tokenizer = word_tokenizer(tmp_path)
        if length is not None:
            tokenizer(["a cat", "the"], truncation=True, max_length=length, padding=True)
        features = cached_map(
            rows, lambda batch, rows, t=tokenizer: dict(t(batch["text"])), (), tokenizer
        )
        fingerprints.add(features._fingerprint)
    assert len(fingerprints) == 1


def test_a_cache_that_cannot_be_made_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    rows = Dataset.from_dict({"text": ["the cat sat"]})
    with pytest.raises(UserError, match=r"this cache cannot be written .*HF_DATASETS_CACHE=DIR"):
        cached_map(rows, dict, (), word_tokenizer(tmp_path))
