from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynarank.adapters.greedy import exchanged, top_components, top_parameters


def test_more_ties_than_a_sort_keeps_in_order_by_chance() -> None:
    kept = top_components(torch.zeros(5000), 1234)
    assert kept[:1234].all()
    assert not kept[1234:].any()


@pytest.mark.parametrize(("count", "kept"), [(-1, 0), (0, 0), (3, 3), (4, 3)])
def test_the_count_is_clipped(count: int, kept: int) -> None:
    assert int(top_components(torch.rand(3), count).sum()) == kept


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=9), st.data())
def test_parameters_are_filled_by_worth_up_to_less_than_one_component(
    scores: list[float], data: st.DataObject
) -> None:
    costs = data.draw(
        st.lists(st.sampled_from([3, 7, 10]), min_size=len(scores), max_size=len(scores))
    )
    limit = data.draw(st.integers(0, sum(costs) + 2))
    keep = top_parameters(
        torch.tensor(scores), torch.tensor(costs, dtype=torch.float), limit
    ).tolist()
    spent = sum(cost for cost, kept in zip(costs, keep, strict=True) if kept)
    assert spent <= limit
    assert all(cost > limit - spent for cost, kept in zip(costs, keep, strict=True) if not kept)
    worth = sorted(range(len(scores)), key=lambda i: (-scores[i] / costs[i], i))
    left = limit
    for index in worth:
        assert keep[index] == (costs[index] <= left)
        left -= costs[index] if keep[index] else 0


def test_equal_costs_choose_what_counting_chooses() -> None:
    scores = torch.rand(40, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    for count in (0, 1, 17, 40):
        assert torch.equal(
            top_parameters(scores, torch.full((40,), 5.0), 5 * count), top_components(scores, count)
        )


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 2.5]), min_size=1, max_size=8), st.data())
def test_no_exchange_of_two_components_makes_the_choice_better(
    scores: list[float], data: st.DataObject
) -> None:
    costs = data.draw(
        st.lists(st.sampled_from([3, 7, 10]), min_size=len(scores), max_size=len(scores))
    )
    limit = data.draw(st.integers(0, sum(costs) + 2))
    values, prices = torch.tensor(scores), torch.tensor(costs, dtype=torch.float)
    greedy = top_parameters(values, prices, limit)
    keep = exchanged(greedy, values, prices, limit)
    room = limit - int(prices[keep].sum())
    assert room >= 0
    assert float(values[keep].sum()) >= float(values[greedy].sum())
    assert int(keep.sum()) == int(greedy.sum())
    for given_up, taken in itertools.permutations(range(len(scores)), 2):
        if keep[given_up] and not keep[taken] and costs[taken] - costs[given_up] <= room:
            assert scores[taken] <= scores[given_up]


def test_a_narrow_component_makes_way_for_a_wide_one_that_room_is_left_for() -> None:
    scores = torch.tensor([3.0, 2.9, 2.8, 4.0, 3.5])  # three narrow ones, two wide ones
    costs = torch.tensor([2.0, 2.0, 2.0, 5.0, 5.0])
    greedy = top_parameters(scores, costs, 10)
    assert greedy.tolist() == [True, True, True, False, False]
    keep = exchanged(greedy, scores, costs, 10)
    assert keep.tolist() == [True, True, False, True, False]


def test_what_comes_first_is_not_exchanged_and_what_may_not_be_taken_stays_out() -> None:
    scores = torch.tensor([torch.inf, 1.0, -1.0, 2.0])
    costs = torch.tensor([2.0, 2.0, 5.0, 4.0])
    keep = exchanged(torch.tensor([True, True, False, False]), scores, costs, 7)
    assert keep.tolist() == [True, False, False, True]
    keep = exchanged(torch.tensor([True, False, False, False]), scores, costs, 5)
    assert keep.tolist() == [True, False, False, False]
