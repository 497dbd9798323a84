from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dynarank.report.significance import (
    compare,
    holm,
    paired_t,
    sign_flips,
    signed_ranks,
    summarize,
)

SEEDS = np.random.default_rng(0).normal(0.5, 0.1, size=(2, 6))


def test_the_interval_of_a_mean_is_students() -> None:
    found = summarize(SEEDS[0])
    low, high = stats.t.interval(0.95, 5, loc=SEEDS[0].mean(), scale=stats.sem(SEEDS[0]))
    assert (found.mean, found.sd, found.n) == pytest.approx(
        (SEEDS[0].mean(), SEEDS[0].std(ddof=1), 6)
    )
    assert (found.low, found.high) == pytest.approx((low, high))


def test_one_seed_has_a_mean_and_no_spread() -> None:
    found = summarize([0.5])
    assert (found.mean, found.n) == (0.5, 1)
    assert all(math.isnan(value) for value in (found.sd, found.low, found.high))
    assert math.isnan(compare([1.0], [2.0]).p_t)


def test_the_paired_t_test_is_scipys() -> None:
    assert paired_t(SEEDS[0] - SEEDS[1]) == pytest.approx(
        stats.ttest_rel(SEEDS[0], SEEDS[1]).pvalue
    )
    assert paired_t(np.zeros(4)) == 1
    assert paired_t(np.full(4, 0.1)) == 0


def test_the_flip_test_counts_every_sign() -> None:
    differences = SEEDS[0] - SEEDS[1]
    means = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=6)]
    assert sign_flips(differences) == pytest.approx(
        np.mean([m >= abs(differences.sum()) - 1e-9 for m in means])
    )
    known = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flips(differences) == pytest.approx(known.pvalue)
    assert sign_flips(np.ones(5)) == pytest.approx(2 / 2**5)  # its floor with 5 seeds
    with pytest.raises(ValueError, match="20 seeds"):
        sign_flips(np.ones(20))


def test_the_bootstrap_interval_covers_the_mean_and_is_near_scipys() -> None:
    found = compare(SEEDS[0], SEEDS[1])
    differences = SEEDS[0] - SEEDS[1]
    known = stats.bootstrap(
        (differences,), np.mean, method="percentile", random_state=1
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=0.01)
    assert found.low < found.difference < found.high
    assert found == compare(SEEDS[0], SEEDS[1])  # seeded


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_correction_follows_its_definition(p_values: list[float]) -> None:
    found = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for position, index in enumerate(order):
        wanted = max(min(1.0, (len(order) - j) * p_values[order[j]]) for j in range(position + 1))
        assert found[index] == pytest.approx(wanted)


def test_what_could_not_be_tested_is_not_counted() -> None:
    assert holm([0.01, math.nan, 0.04]) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)


def test_signed_ranks_count_every_sign() -> None:
    differences = np.array([0.3, -0.1, 0.8, 0.5, -0.2, 0.9, 0.4])
    sizes = np.abs(differences).argsort().argsort() + 1

    def balance(signs: Sequence[float]) -> float:
        return float((np.asarray(signs) * sizes).sum() / sizes.sum())

    correlation, p = signed_ranks(differences)
    assert correlation == pytest.approx(balance(np.sign(differences)))
    flips = [balance(signs) for signs in itertools.product([-1.0, 1.0], repeat=7)]
    extreme = sum(abs(flip) >= abs(correlation) - 1e-12 for flip in flips)
    assert p == pytest.approx(extreme / 2**7)
    # What is largest weighs no more when it is larger.
    differences[5] = 100.0
    assert signed_ranks(differences) == (correlation, p)


def test_signed_ranks_of_nothing() -> None:
    assert signed_ranks(np.zeros(4)) == (0.0, 1.0)
    assert all(math.isnan(value) for value in signed_ranks(np.array([0.1, math.nan])))
    with_zero, without = signed_ranks(np.array([0.0, 0.1, 0.2])), signed_ranks(np.array([0.1, 0.2]))
    assert with_zero == without
