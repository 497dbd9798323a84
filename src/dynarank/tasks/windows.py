"""Windows of long contexts: a question and a piece of its context, with the answer's tokens.

A context longer than a window is seen in several windows, which overlap by `stride` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynarank.tasks.answers import Answers
from dynarank.tasks.config import QuestionAnsweringConfig
from dynarank.tasks.features import encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACES = ("row", "context_start", "context_end", "offset_start", "offset_end")
"""Columns that say where a window stands: its row, the tokens [context_start, context_end) of its
context, and for every token the characters of the context before and up to its end."""
TARGETS = ("start_positions", "end_positions")
"""Columns that say which tokens the answer begins and ends with."""


def cut_questions(
    questions: Sequence[str], rows: Sequence[int], most: int, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Return the questions with at most `most` tokens each, without white space around them.

    Of a character that is several tokens, all of them stay or none.
    """
    stripped = [question.strip() for question in questions]
    encoded = encode_texts(
        tokenizer, stripped, rows=rows, add_special_tokens=False, return_offsets_mapping=True
    )
    cut = []
    for question, offsets in zip(stripped, encoded["offset_mapping"], strict=True):
        if len(offsets) > most:
            question = question[: offsets[most][0]].rstrip()
        cut.append(question)
    return cut


def encode_windows(
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Sequence[Answers] | None,
    rows: Sequence[int],
    config: QuestionAnsweringConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, list[Any]]:
    """Return the features of all windows, in the order of their rows.

    In training, a window without the whole answer points to its first token; so does a window of a
    question that has no answer.

    Args:
        questions: of at most `config.max_question` tokens.
        contexts: one for each question.
        answers: one for each question; None where they are to be predicted.
        rows: the row number of each question.
        config: the sizes of the windows.
        tokenizer: a fast one, which says where tokens stand in a text.
    """
    encoded = encode_texts(
        tokenizer,
        list(questions),
        list(contexts),
        rows=rows,
        # The questions were cut before, so that each window holds its question whole.
        truncation="only_second",
        max_length=config.max_length,
        stride=config.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    features: dict[str, list[Any]] = {}
    for name in tokenizer.model_input_names:
        if name in encoded:
            features[name] = encoded[name]
    added = PLACES if answers is None else PLACES + TARGETS
    features |= {name: [] for name in added}
    for window, question in enumerate(encoded["overflow_to_sample_mapping"]):
        offsets = np.asarray(encoded["offset_mapping"][window])  # (tokens, 2)
        begin, end = _context_tokens(encoded.sequence_ids(window))
        features["row"].append(rows[question])
        features["context_start"].append(begin)
        features["context_end"].append(end)
        features["offset_start"].append(offsets[:, 0].tolist())
        features["offset_end"].append(offsets[:, 1].tolist())
        if answers is not None:
            first, last = _answer_tokens(answers[question], offsets, begin, end)
            features["start_positions"].append(first)
            features["end_positions"].append(last)
    return features


def _context_tokens(parts: Sequence[int | None]) -> tuple[int, int]:
    """Return the tokens [begin, end) of the context, for which `parts` is 1.

    Without such tokens, it returns (0, 0).
    """
    context = np.flatnonzero([part == 1 for part in parts])
    if len(context) == 0:
        return 0, 0
    return int(context[0]), int(context[-1]) + 1


def _answer_tokens(answer: Answers, offsets: np.ndarray, begin: int, end: int) -> tuple[int, int]:
    """Return the first and last token of the answer, or (0, 0) if the window has not all of it."""
    if not answer.texts:
        return 0, 0
    text = answer.texts[0]
    margin = len(text) - len(text.lstrip())  # no token holds white space
    start = answer.start + margin
    stop = answer.start + len(text.rstrip())
    if begin == end:
        return 0, 0
    starts, ends = offsets[begin:end, 0], offsets[begin:end, 1]
    if start < starts[0] or stop > ends[-1]:
        return 0, 0
    first = int(np.searchsorted(ends, start, side="right"))  # the first that ends after the start
    after = int(np.searchsorted(starts, stop, side="left"))  # the first that begins at the stop
    return begin + first, begin + after - 1
