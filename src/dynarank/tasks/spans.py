"""From start and end logits to answers: the best spans of each window, merged over all windows of a question.

Legend: F windows (features), n tokens of a window, k spans kept a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def best_spans(
    start: Tensor, end: Tensor, context: Tensor, k: int, max_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The k best spans of each window, among its k best starts times its k best ends.

    Args:
        start, end: logits, (F, n).
        context: which tokens an answer may have, (F, n) bool.
        max_tokens: tokens of a span at most.

    Returns:
        First and last token and score (the sum of two logits) of k spans, each (F, k), best first; where a window has
        fewer, the tokens are 0 and the score is -inf.
    """
    kept = min(k, start.shape[1])
    first_score, first = start.float().masked_fill(~context, -torch.inf).topk(kept)  # (F, k)
    last_score, last = end.float().masked_fill(~context, -torch.inf).topk(kept)
    length = last[:, None, :] - first[:, :, None] + 1  # (F, k, k)
    scores = (first_score[:, :, None] + last_score[:, None, :]).masked_fill(
        (length < 1) | (length > max_tokens), -torch.inf
    )
    best, pair = scores.flatten(1).topk(min(k, kept * kept))
    none = best == -torch.inf
    return (
        first.gather(1, pair // kept).masked_fill(none, 0),
        last.gather(1, pair % kept).masked_fill(none, 0),
        best,
    )


@dataclass
class Candidates:
    """Spans of all questions, in order of question, then score: parallel arrays."""

    row: np.ndarray
    """The question's row."""
    start: np.ndarray
    """Characters of the context before the span."""
    end: np.ndarray
    score: np.ndarray


def merge_windows(
    row: np.ndarray, start: np.ndarray, end: np.ndarray, score: np.ndarray
) -> Candidates:
    """Every question's spans over all its windows; a span that several windows see counts once, at its best score.

    Args:
        row: the question of each window, (F).
        start, end, score: of each window's spans, in characters of the context, (F, k); -inf scores are left out.

    Ties go to the earlier span, then to the shorter one.
    """
    flat = Candidates(np.repeat(row, start.shape[1]), start.ravel(), end.ravel(), score.ravel())
    flat = _take(flat, np.flatnonzero(np.isfinite(flat.score)))
    flat = _take(flat, np.lexsort((flat.end, flat.start, -flat.score, flat.row)))
    _, first = np.unique(np.stack([flat.row, flat.start, flat.end]), axis=1, return_index=True)
    return _take(flat, np.sort(first))  # np.unique gives first occurrences, which are the best


def _take(spans: Candidates, index: np.ndarray) -> Candidates:
    return Candidates(spans.row[index], spans.start[index], spans.end[index], spans.score[index])
