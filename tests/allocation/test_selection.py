from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynarank.adapters.greedy import top_components, top_parameters
from dynarank.allocation.selection import best_components, with_ceiling, with_floors


@pytest.mark.parametrize("floor", [0, 1, 2])
def test_floors_come_first_and_the_rest_by_score(floor: int) -> None:
    scores, sizes = torch.tensor([0.1, 0.2, 0.3, 5.0, 4.0, 3.0, 0.0, 0.0, 0.0]), [3, 3, 3]
    keep = top_components(with_floors(scores, sizes, floor), 6)
    assert keep.sum() == 6
    counts = [int(part.sum()) for part in keep.split(sizes)]
    assert min(counts) >= floor
    best = max(
        (
            chosen
            for chosen in itertools.combinations(range(9), 6)
            if all(sum(start <= i < start + 3 for i in chosen) >= floor for start in (0, 3, 6))
        ),
        key=lambda chosen: sum(float(scores[i]) for i in chosen),
    )
    assert float(scores[keep].sum()) == pytest.approx(sum(float(scores[i]) for i in best))


def test_what_may_not_be_taken_is_not_taken_for_a_floor() -> None:
    scores = with_floors(torch.tensor([-1.0, -1.0, 2.0, 3.0]), [2, 2], 1)
    assert scores.tolist() == [-1.0, -1.0, 2.0, torch.inf]
    assert top_parameters(scores, torch.ones(4), 4).tolist() == [False, False, True, True]


@given(
    st.lists(st.integers(0, 6), min_size=3, max_size=9),
    st.integers(1, 3),
    st.integers(0, 9),
)
def test_under_a_ceiling_the_choice_is_the_best_of_all_that_keep_it(
    levels: list[int], ceiling: int, count: int
) -> None:
    """Brute force over all choices of so many components, layers of up to three components."""
    scores = torch.tensor([float(level) for level in levels])
    sizes = [3] * (len(levels) // 3) + ([len(levels) % 3] if len(levels) % 3 else [])
    limited = with_ceiling(scores, sizes, ceiling)
    keep = top_components(limited, count) & (limited >= 0)
    assert all(int(part.sum()) <= ceiling for part in keep.split(sizes))
    best = -1.0
    for chosen in itertools.combinations(range(len(levels)), int(keep.sum())):
        mask = torch.zeros(len(levels), dtype=torch.bool)
        mask[list(chosen)] = True
        if all(int(part.sum()) <= ceiling for part in mask.split(sizes)):
            best = max(best, float(scores[mask].sum()))
    assert float(scores[keep].sum()) == best
    room = sum(min(size, ceiling) for size in sizes)
    assert int(keep.sum()) == min(count, room)


def test_no_ceiling_changes_nothing() -> None:
    scores = torch.rand(6)
    assert with_ceiling(scores, [3, 3], None) is scores


def test_a_narrow_component_that_fills_a_later_budget_outlives_better_wide_ones() -> None:
    """Pruned by worth alone, the narrow one goes first, and of 13 parameters 10 can be spent."""
    scores = torch.tensor([10.0, 9.0, 0.1, 8.0])
    costs = torch.tensor([5.0, 5.0, 3.0, 5.0])
    by_worth = top_parameters(scores, costs, 15)
    assert by_worth.tolist() == [True, True, False, True]
    assert float(costs[top_parameters(scores, costs, 13)].sum()) == 13
    later = top_parameters(torch.where(by_worth, scores, torch.tensor(-1.0)), costs, 13)
    assert float(costs[later].sum()) == 10

    kept = best_components(scores, [4], 15, costs=costs, later=13)
    assert kept.tolist() == [True, True, True, False]
    later = top_parameters(torch.where(kept, scores, torch.tensor(-1.0)), costs, 13)
    assert float(costs[later].sum()) == 13


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=9), st.data())
def test_what_a_later_budget_would_take_is_always_kept(
    scores: list[float], data: st.DataObject
) -> None:
    size = len(scores)
    costs = torch.tensor(
        data.draw(st.lists(st.sampled_from([3, 7, 10]), min_size=size, max_size=size)),
        dtype=torch.float,
    )
    now = data.draw(st.integers(0, int(costs.sum())))
    later = data.draw(st.integers(0, now))
    values = torch.tensor(scores)
    wanted = best_components(values, [size], later, costs=costs)
    kept = best_components(values, [size], now, costs=costs, later=later)
    assert not (wanted & ~kept).any()
    assert float(costs[kept].sum()) <= now


def test_room_that_only_wide_components_are_left_for_is_used() -> None:
    """Taken by worth alone, the narrow ones leave 4 of 10 parameters, and no wide one fits."""
    scores = torch.tensor([3.0, 2.9, 2.8, 4.0, 3.5])
    costs = torch.tensor([2.0, 2.0, 2.0, 5.0, 5.0])
    for later in (None, 10):
        kept = best_components(scores, [5], 10, costs=costs, later=later)
        assert kept.tolist() == [True, True, False, True, False]
