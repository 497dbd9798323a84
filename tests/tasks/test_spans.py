from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dynarank.tasks.spans import Candidates, best_spans, merge_windows

Span = tuple[int, int, float]


def brute_force(
    start: Tensor, end: Tensor, context: Tensor, k: int, max_tokens: int
) -> list[list[Span]]:
    """Each window's k best allowed spans among its k best starts times k best ends, best first."""
    windows = []
    for begins, ends, allowed in zip(start.tolist(), end.tolist(), context.tolist(), strict=True):
        tokens = [token for token, inside in enumerate(allowed) if inside]
        firsts = sorted(tokens, key=lambda token: -begins[token])[:k]
        lasts = sorted(tokens, key=lambda token: -ends[token])[:k]
        pairs = [
            (i, j, begins[i] + ends[j]) for i in firsts for j in lasts if i <= j < i + max_tokens
        ]
        windows.append(sorted(pairs, key=lambda span: -span[2])[:k])
    return windows


def found_spans(
    start: Tensor, end: Tensor, context: Tensor, k: int, max_tokens: int
) -> list[list[Span]]:
    first, last, score = best_spans(start, end, context, k, max_tokens)
    assert first.shape == last.shape == score.shape == (len(start), min(k, start.shape[1] ** 2))
    windows = []
    for parts in zip(first.tolist(), last.tolist(), score.tolist(), strict=True):
        spans = list(zip(*parts, strict=True))
        valid = [span for span in spans if np.isfinite(span[2])]
        assert spans == [*valid, *[(0, 0, -np.inf)] * (len(spans) - len(valid))]
        windows.append(valid)
    return windows


def same(found: list[list[Span]], wanted: list[list[Span]]) -> bool:
    return [[span[:2] for span in spans] for spans in found] == [
        [span[:2] for span in spans] for spans in wanted
    ] and all(
        a[2] == pytest.approx(b[2], abs=1e-5)
        for one, other in zip(found, wanted, strict=True)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("k", [1, 2, 5, 20])
@pytest.mark.parametrize("tokens", [1, 3, 12, 40])
@pytest.mark.parametrize("max_tokens", [1, 4, 100])
def test_best_spans_are_those_of_a_search(k: int, tokens: int, max_tokens: int) -> None:
    torch.manual_seed(k * tokens)
    for share in (0.2, 0.7, 1.0):
        start, end = torch.randn(2, 6, tokens).unbind()
        context = torch.rand(6, tokens) < share
        wanted = brute_force(start, end, context, k, max_tokens)
        assert same(found_spans(start, end, context, k, max_tokens), wanted)


def test_logits_outside_the_context_do_not_count() -> None:
    torch.manual_seed(0)
    start, end = torch.randn(2, 3, 10).unbind()
    context = torch.zeros(3, 10, dtype=torch.bool)
    context[:, 4:8] = True
    expected = found_spans(start, end, context, 20, 5)
    start, end = start.masked_fill(~context, 1e4), end.masked_fill(~context, 1e4)
    assert found_spans(start, end, context, 20, 5) == expected
    assert all(4 <= span[0] <= span[1] < 8 for spans in expected for span in spans)


def test_a_window_without_a_context_or_with_ends_before_starts_has_no_spans() -> None:
    context = torch.ones(2, 6, dtype=torch.bool)
    context[0] = False
    start, end = torch.arange(6.0).expand(2, 6), -torch.arange(6.0).expand(2, 6)
    assert found_spans(start, end, context, 2, 6) == [[], []]


def test_half_precision_logits_are_added_in_single_precision() -> None:
    start, end = torch.tensor([[2048.0, 0.0]]).bfloat16(), torch.tensor([[0.0, 1.0]]).bfloat16()
    assert found_spans(start, end, torch.ones(1, 2, dtype=torch.bool), 1, 2) == [[(0, 1, 2049.0)]]


def merged(
    row: list[int], start: np.ndarray, end: np.ndarray, score: np.ndarray
) -> list[tuple[int, int, int, float]]:
    best: dict[tuple[int, int, int], float] = {}
    for window, question in enumerate(row):
        for begin, stop, value in zip(start[window], end[window], score[window], strict=True):
            if value > -np.inf:
                key = (question, int(begin), int(stop))
                best[key] = max(best.get(key, -np.inf), float(value))
    return sorted(
        ((*key, value) for key, value in best.items()),
        key=lambda one: (one[0], -one[3], one[1], one[2]),
    )


def as_tuples(spans: Candidates) -> list[tuple[int, int, int, float]]:
    columns = (spans.row.tolist(), spans.start.tolist(), spans.end.tolist(), spans.score.tolist())
    return list(zip(*columns, strict=True))


def test_merged_windows_are_a_dictionarys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        windows, k = int(rng.integers(1, 9)), int(rng.integers(1, 8))
        row = np.sort(rng.integers(0, 5, windows))
        start = rng.integers(0, 4, (windows, k))
        end = start + rng.integers(0, 3, (windows, k))
        score = rng.choice([-np.inf, -1.0, 0.0, 0.5, 2.0], (windows, k))
        assert as_tuples(merge_windows(row, start, end, score)) == merged(
            row.tolist(), start, end, score
        )


def test_a_span_in_two_windows_counts_once_at_its_best_score() -> None:
    start, end = np.asarray([[5, 0], [9, 5]]), np.asarray([[8, 3], [12, 8]])
    spans = merge_windows(np.asarray([3, 3]), start, end, np.asarray([[1.0, 0.5], [3.0, 2.0]]))
    assert as_tuples(spans) == [(3, 9, 12, 3.0), (3, 5, 8, 2.0), (3, 0, 3, 0.5)]


def test_the_same_span_of_two_questions_counts_for_each() -> None:
    start, end = np.asarray([[5], [5]]), np.asarray([[8], [8]])
    spans = merge_windows(np.asarray([0, 1]), start, end, np.asarray([[1.0], [2.0]]))
    assert as_tuples(spans) == [(0, 5, 8, 1.0), (1, 5, 8, 2.0)]


def test_ties_go_to_the_earlier_then_the_shorter_span() -> None:
    start, end = np.asarray([[7, 2, 2, 2]]), np.asarray([[8, 9, 4, 6]])
    spans = merge_windows(np.asarray([0]), start, end, np.full((1, 4), 1.5))
    assert list(zip(spans.start.tolist(), spans.end.tolist(), strict=True)) == [
        (2, 4),
        (2, 6),
        (2, 9),
        (7, 8),
    ]


def test_questions_without_spans_are_left_out() -> None:
    start = np.asarray([[1, 2], [1, 2], [1, 2]])
    score = np.asarray([[0.0, -np.inf], [-np.inf, -np.inf], [-np.inf, 1.0]])
    assert as_tuples(merge_windows(np.asarray([0, 1, 2]), start, start + 1, score)) == [
        (0, 1, 2, 0.0),
        (2, 2, 3, 1.0),
    ]
    assert (
        as_tuples(merge_windows(np.asarray([0, 1, 2]), start, start + 1, np.full((3, 2), -np.inf)))
        == []
    )
