"""From start and end logits to answers: the best spans of each window, merged over all windows.

Legend: F windows (features), n tokens of a window, k spans kept a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class WindowSpans:
    """The best spans of a window, best first."""

    first: np.ndarray
    """The first token of each span, (k)."""
    last: np.ndarray
    """The last token of each span, (k)."""
    score: np.ndarray
    """The score of each span, (k); -inf where the window has fewer spans."""
    null: float
    """The score of no answer."""


def best_spans(
    start: Tensor, end: Tensor, context: Tensor, k: int, max_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k best spans of each window, among its k best starts times its k best ends.

    Args:
        start: logits, (F, n).
        end: logits, (F, n).
        context: which tokens an answer may have, (F, n) bool.
        k: the number of spans.
        max_tokens: the most tokens of a span.

    Returns:
        First token, last token and score (the sum of two logits) of k spans, each (F, k), best
        first. Where a window has fewer spans, the tokens are 0 and the score is -inf.
    """
    kept = min(k, start.shape[1])
    # In bfloat16, sums of two logits would be rounded to ties.
    start_scores = start.float().masked_fill(~context, -torch.inf)  # (F, n)
    end_scores = end.float().masked_fill(~context, -torch.inf)
    first_score, first = start_scores.topk(kept)  # (F, k)
    last_score, last = end_scores.topk(kept)
    length = last[:, None, :] - first[:, :, None] + 1  # (F, k, k)
    scores = first_score[:, :, None] + last_score[:, None, :]
    scores = scores.masked_fill((length < 1) | (length > max_tokens), -torch.inf)
    # A pair's number is start x kept + end: below, both are read off it again.
    best, pair = scores.flatten(1).topk(min(k, kept * kept))
    none = best == -torch.inf
    first_token = first.gather(1, pair // kept).masked_fill(none, 0)
    last_token = last.gather(1, pair % kept).masked_fill(none, 0)
    return first_token, last_token, best


@dataclass
class Candidates:
    """Spans of all questions, in order of question, then score: parallel arrays."""

    row: np.ndarray
    """The question's row."""
    start: np.ndarray
    """Characters of the context before the span."""
    end: np.ndarray
    """Characters of the context up to the span's end."""
    score: np.ndarray

    def take(self, index: np.ndarray) -> Candidates:
        """Return these of the spans."""
        return Candidates(
            row=self.row[index],
            start=self.start[index],
            end=self.end[index],
            score=self.score[index],
        )

    def records(self, part: slice, context: str) -> list[dict[str, Any]]:
        """Return text, start and score of some spans, which are of this context."""
        spans = zip(self.start[part], self.end[part], self.score[part], strict=True)
        return [
            {"text": context[start:end], "start": int(start), "score": float(score)}
            for start, end, score in spans
        ]


def merge_windows(
    row: np.ndarray, start: np.ndarray, end: np.ndarray, score: np.ndarray
) -> Candidates:
    """Return every question's spans over all its windows.

    A span that several windows see counts once, at its best score. Ties go to the earlier span,
    then to the shorter one.

    Args:
        row: the question of each window, (F).
        start: of each window's spans, in characters of the context, (F, k).
        end: likewise, (F, k).
        score: likewise, (F, k); spans of score -inf are left out.
    """
    spans = Candidates(
        row=np.repeat(row, start.shape[1]),
        start=start.ravel(),
        end=end.ravel(),
        score=score.ravel(),
    )
    spans = spans.take(np.flatnonzero(np.isfinite(spans.score)))
    # The last key of lexsort is the first to sort by.
    spans = spans.take(np.lexsort((spans.end, spans.start, -spans.score, spans.row)))
    places = np.stack([spans.row, spans.start, spans.end])
    _, first = np.unique(places, axis=1, return_index=True)
    return spans.take(np.sort(first))  # np.unique gives first occurrences, which are the best


def span_characters(
    features: Dataset, spans: Sequence[WindowSpans]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where each window's spans begin and end, in characters, and their scores, each (F, k).

    Windows with fewer than k spans are filled up with scores of -inf.
    """
    table = features.select_columns(["offset_start", "offset_end"]).with_format("arrow")[:]
    first = _stack([window.first for window in spans], 0)
    last = _stack([window.last for window in spans], 0)
    start = _pick(table["offset_start"].combine_chunks(), first)
    end = _pick(table["offset_end"].combine_chunks(), last)
    return start, end, _stack([window.score for window in spans], -np.inf)


def _stack(parts: Sequence[np.ndarray], fill: float) -> np.ndarray:
    """Return arrays of up to k values as one array, (F, k)."""
    width = max(len(part) for part in parts)
    padded = [np.pad(part, (0, width - len(part)), constant_values=fill) for part in parts]
    return np.stack(padded)


def _pick(lists: Any, index: np.ndarray) -> np.ndarray:
    """Return of each of F lists, an arrow array, the elements of these indices, (F, k)."""
    offsets = np.asarray(lists.offsets)
    # A slice keeps the offsets of the whole array, and flatten() gives the slice's values alone.
    begins = offsets[:-1] - offsets[0]
    picked: np.ndarray = np.asarray(lists.flatten())[begins[:, None] + index]
    return picked
