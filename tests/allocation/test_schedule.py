from __future__ import annotations

import dataclasses
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dynarank.allocation.schedule import SHAPES, BudgetSchedule, budget_schedule

PLAIN = {"init": 12, "target": 8, "total": 100, "warmup": 0.15, "final": 0.5, "interval": 10}


@st.composite
def schedules(draw: st.DrawFn) -> tuple[BudgetSchedule, int, int]:
    """A schedule, its t_i and its t_f, the two from whole percentages."""
    warmup, final = draw(st.integers(0, 99)), draw(st.integers(0, 99))
    assume(warmup + final < 100)
    total, target = draw(st.integers(1, 1000)), draw(st.integers(0, 8))
    init, interval = target + draw(st.integers(0, 8)), draw(st.integers(1, 120))
    schedule = BudgetSchedule(init, target, total, warmup / 100, final / 100, interval)
    return schedule, warmup * total // 100, final * total // 100


@settings(deadline=None, max_examples=100, database=None)
@given(schedules())
def test_budget_is_equation_9(case: tuple[BudgetSchedule, int, int]) -> None:
    schedule, t_i, t_f = case
    b0, bT, T = Fraction(schedule.init), Fraction(schedule.target), schedule.total
    assert (schedule.start_step, schedule.freeze_step) == (t_i, T - t_f)
    for t in range(T + 1):
        if t >= T - t_f:
            assert schedule.budget(t) == bT
        elif t <= t_i:
            assert schedule.budget(t) == b0
        else:
            expected = b0 - (b0 - bT) * Fraction(t - t_i, T - t_f - t_i) ** 3
            assert schedule.budget(t) == pytest.approx(float(expected), rel=1e-12)


@settings(deadline=None, max_examples=80, database=None)
@given(schedules(), st.sampled_from(list(SHAPES)), st.integers(1, 80))
def test_what_may_be_kept_only_falls_and_ends_at_the_target(
    case: tuple[BudgetSchedule, int, int], shape: str, layers: int
) -> None:
    schedule = dataclasses.replace(case[0], shape=shape)
    counts = [schedule.keep(t, layers) for t in range(schedule.total + 1)]
    assert counts == sorted(counts, reverse=True)
    assert set(counts[schedule.freeze_step :]) == {schedule.target * layers}
    assert all(
        abs(count - layers * schedule.budget(t)) <= 0.5 + 1e-9 for t, count in enumerate(counts)
    )


@settings(deadline=None, max_examples=100, database=None)
@given(schedules())
def test_prunes_every_interval_in_the_window_and_last_at_the_freeze(
    case: tuple[BudgetSchedule, int, int],
) -> None:
    schedule, t_i, t_f = case
    steps = [t for t in range(1, schedule.total + 1) if schedule.prunes_at(t)]
    assert steps[-1] == schedule.total - t_f
    assert steps[0] >= t_i
    before = [max(t_i, 1) - 1, *steps]
    gaps = [later - earlier for earlier, later in pairwise(before)]
    assert all(gap == schedule.interval for gap in gaps[1:-1])
    assert gaps[0] <= schedule.interval
    assert gaps[-1] <= schedule.interval


def test_a_plain_run_prunes_where_one_expects() -> None:
    schedule = BudgetSchedule(**PLAIN)
    assert [t for t in range(101) if schedule.prunes_at(t)] == [20, 30, 40, 50]


def test_an_interval_longer_than_the_window_prunes_once() -> None:
    schedule = BudgetSchedule(**PLAIN | {"interval": 1000})
    assert [t for t in range(101) if schedule.prunes_at(t)] == [50]


@pytest.mark.parametrize(
    ("share", "total", "steps"),
    [
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.58, 100, 58),
        (0.07, 100, 7),
        (0.15, 101, 15),
        (0.15, 6, 0),
        (0.299, 10, 2),
    ],
)
def test_shares_are_floored_as_meant(share: float, total: int, steps: int) -> None:
    assert BudgetSchedule(2, 1, total, warmup=share, final=0).start_step == steps
    assert BudgetSchedule(2, 1, total, warmup=0, final=share).freeze_step == total - steps


def test_without_a_final_share_the_last_step_prunes() -> None:
    schedule = BudgetSchedule(**PLAIN | {"final": 0.0})
    assert schedule.freeze_step == 100
    assert schedule.prunes_at(100)
    assert schedule.budget(99) > schedule.budget(100) == 8


def test_a_run_of_one_step_ends_at_the_target() -> None:
    schedule = BudgetSchedule(init=3, target=2, total=1)
    assert (schedule.budget(0), schedule.budget(1)) == (3, 2)
    assert schedule.prunes_at(1)


@pytest.mark.parametrize(
    ("budget", "layers", "count"),
    [(0.5, 1, 1), (2.5, 1, 3), (1.5, 3, 5), (1.25, 2, 3), (1.2, 2, 2), (0, 5, 0), (7, 72, 504)],
)
def test_halves_round_up(budget: float, layers: int, count: int) -> None:
    assert BudgetSchedule(budget, budget, total=10).keep(3, layers) == count


def test_init_equal_to_target_never_falls() -> None:
    schedule = BudgetSchedule(**PLAIN | {"init": 8})
    assert {schedule.budget(t) for t in range(101)} == {8}


def test_function_and_object_agree() -> None:
    schedule = BudgetSchedule(**PLAIN)
    assert [schedule.budget(t) for t in range(101)] == [
        budget_schedule(t, 12, 8, 100, 0.15, 0.5) for t in range(101)
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"total": 0}, "total = 0"),
        ({"target": -1}, "target = -1"),
        ({"init": 7}, "init = 7, target = 8"),
        ({"init": float("nan")}, "init = nan, target = 8"),
        ({"init": float("inf")}, "init = inf, target = 8"),
        ({"target": float("nan")}, "init = 12, target = nan"),
        ({"total": 187.5}, "total = 187.5"),
        ({"total": float("inf")}, "total = inf"),
        ({"interval": 0}, "interval = 0"),
        ({"interval": 2.5}, "interval = 2.5"),
        ({"warmup": -0.1}, "warmup = -0.1"),
        ({"warmup": 1.0, "final": 0.0}, "warmup = 1"),
        ({"final": -0.1}, "final = -0.1"),
        ({"warmup": 0.0, "final": 1.0}, "final = 1"),
        ({"warmup": 0.5, "final": 0.5}, "warmup = 0.5, final = 0.5"),
    ],
    ids=str,
)
def test_bad_values_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BudgetSchedule(**PLAIN | change)
