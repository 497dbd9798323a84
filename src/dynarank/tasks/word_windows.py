"""Windows of rows of words: tokens, which word each begins, and which window a word is read in.

A row that is longer than a window is read in several, which overlap. A word's tag is read at its
first token, in the window where that token has the most context on its shorter side, so that every
word counts once and none is cut off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynarank.tasks.features import encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class WordWindow:
    """A window of a row, and the words that are read in it."""

    row: int
    inputs: dict[str, list[int]]
    """What the model takes, by name."""
    words: list[int]
    """The numbers of the words that are read in this window, ascending."""
    places: list[int]
    """The token at which each of these words is read."""


@dataclass
class _Start:
    """A word's first token, as one window has it."""

    window: int
    place: int
    context: int
    """Tokens of the window on the shorter side of it."""


def encode_word_windows(
    texts: Sequence[Sequence[str]],
    rows: Sequence[int],
    max_length: int,
    stride: int,
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[WordWindow]:
    """Yield the windows of each row that words are read in, in the order of the rows.

    The words are joined by blanks and encoded as the plain text that the model was pretrained on.
    A word of which the tokenizer makes no token (a lone control character) is in no window.

    Args:
        texts: the words of each row.
        rows: the row number of each, for the windows and for errors.
        max_length: tokens of a window, special ones included.
        stride: tokens that a window shares with the one before.
        tokenizer: a fast one, which says where tokens stand in a text.
    """
    encoded = encode_texts(
        tokenizer,
        [" ".join(words) for words in texts],
        rows=rows,
        truncation=True,
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = [name for name in tokenizer.model_input_names if name in encoded]
    owners = np.asarray(encoded["overflow_to_sample_mapping"])
    for index, words in enumerate(texts):
        windows = np.flatnonzero(owners == index).tolist()
        offsets = [encoded["offset_mapping"][window] for window in windows]
        starts = _first_tokens(words, offsets)
        for position, window in enumerate(windows):
            read = sorted(
                (word, start.place) for word, start in starts.items() if start.window == position
            )
            if read:
                yield WordWindow(
                    row=rows[index],
                    inputs={name: encoded[name][window] for name in names},
                    words=[word for word, _ in read],
                    places=[place for _, place in read],
                )


def _first_tokens(
    words: Sequence[str], windows: Sequence[Sequence[tuple[int, int]]]
) -> dict[int, _Start]:
    """Return each word's first token, in the window that shows most around it.

    Args:
        words: of the row.
        windows: for each window, the characters of the joined words that each token covers, as
            (first, after the last); (0, 0) for special tokens.
    """
    word_at = _words_of_characters(words)
    best: dict[int, tuple[int, _Start]] = {}  # with the character after the token
    for window, offsets in enumerate(windows):
        for place, (begin, end) in enumerate(offsets):
            # A token may begin with the blank before its word, so that its last character tells.
            word = word_at[end - 1] if end > begin else -1
            if word < 0:
                continue
            context = min(place, len(offsets) - 1 - place)
            start = _Start(window=window, place=place, context=context)
            known = best.get(word)
            is_earlier = known is None or end < known[0]
            if is_earlier or (known is not None and _is_clearer(end, start, known)):
                best[word] = (end, start)
    return {word: start for word, (_, start) in best.items()}


def _is_clearer(end: int, start: _Start, known: tuple[int, _Start]) -> bool:
    """Return whether this is the known token again, with more context in another window."""
    is_same = end == known[0] and start.window != known[1].window
    return is_same and start.context > known[1].context


def _words_of_characters(words: Sequence[str]) -> np.ndarray:
    """Return the number of the word that each character of the joined words is of; -1 for blanks.

    Blanks at a word's own ends count as none of it.
    """
    parts: list[np.ndarray] = []
    for number, word in enumerate(words):
        # One more for the blank after the word.
        characters = np.full(len(word) + 1, number)
        characters[len(word.rstrip()) :] = -1
        characters[: len(word) - len(word.lstrip())] = -1
        parts.append(characters)
    return np.concatenate(parts) if parts else np.zeros(0, dtype=int)


def spread(places: Sequence[int], values: Sequence[int], length: int, filler: int) -> list[int]:
    """Return a list of so many fillers, with each value at its place."""
    row = [filler] * length
    for place, value in zip(places, values, strict=True):
        row[place] = value
    return row


def pad(row: list[int], length: int, filler: int, left: bool) -> list[int]:
    """Return a row filled up to a length, at its left or at its right."""
    rest = [filler] * (length - len(row))
    return rest + row if left else row + rest
