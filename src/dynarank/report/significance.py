"""What a few seeds can show: the interval of a mean, and whether a difference is chance.

Legend: n is the number of seeds; p is the probability of a difference at least as large by chance.
All tests are two-sided. The tests themselves are those of `scipy.stats`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
"""The coverage of every interval."""
MOST_FLIPPED_SEEDS = 16
"""The sign-flip test counts all 2^n flips; beyond this number of seeds it is left out."""
RESAMPLES = 10_000
TIE_DECIMALS = 12
"""Means that agree to so many decimals are equal; what differs is only the order of summation."""
SAME_DIFFERENCE = 1e-12
"""A spread below this share of the largest difference is rounding: all differences are equal."""


@dataclass(frozen=True)
class Summary:
    """A setting's scores over seeds."""

    mean: float
    sd: float
    """The sample standard deviation (divided by n - 1); NaN for one seed."""
    n: int
    low: float
    """The lower end of the mean's 95 % interval, by Student's t; NaN for one seed."""
    high: float
    undefined: int = 0
    """How many seeds have the score NaN. With any of them there is no mean, because the mean of
    the remaining seeds would flatter a setting that sometimes fails."""


def summarize(values: Sequence[float]) -> Summary:
    """Return the mean, the spread and the interval of at least one value."""
    scores = np.asarray(values, dtype=float)
    n = len(scores)
    mean = float(scores.mean())
    if n == 1 or math.isnan(mean):
        undefined = int(np.isnan(scores).sum())
        return Summary(
            mean=mean, sd=math.nan, n=n, low=math.nan, high=math.nan, undefined=undefined
        )
    sd = float(scores.std(ddof=1))
    half_width = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    return Summary(mean=mean, sd=sd, n=n, low=mean - half_width, high=mean + half_width)


@dataclass(frozen=True)
class Comparison:
    """A setting's scores less another's, paired by seed."""

    difference: float
    """The mean of the differences."""
    n: int
    low: float
    """The lower end of the 95 % paired bootstrap interval; NaN for one seed."""
    high: float
    p_t: float
    """p of the paired t test; NaN for one seed."""
    p_flips: float
    """p of the exact sign-flip test, which cannot fall below 2 / 2^n: 0.0625 with 5 seeds.
    NaN for one seed and beyond `MOST_FLIPPED_SEEDS`."""


def compare(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Comparison:
    """Compare the first scores with the second, value by value.

    Raises:
        ValueError: the two have unequal numbers of values.
    """
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    n = len(differences)
    mean = float(differences.mean())
    if n < 2:
        return Comparison(
            difference=mean, n=n, low=math.nan, high=math.nan, p_t=math.nan, p_flips=math.nan
        )
    low, high = bootstrap_interval(differences, seed)
    p_flips = math.nan
    if n <= MOST_FLIPPED_SEEDS:  # it has 2^n cases
        p_flips = sign_flips(differences)
    return Comparison(
        difference=mean,
        n=n,
        low=low,
        high=high,
        p_t=float(paired_t(differences)),
        p_flips=p_flips,
    )


def paired_t(differences: np.ndarray) -> np.ndarray:
    """Return p of the paired t test of differences (..., n), with n of at least 2, as (...).

    Where all differences are equal the t value has no meaning: p is then 1 if they are zero, and
    0 if they are not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Equal differences are answered below.
        known = stats.ttest_1samp(differences, 0, axis=-1, nan_policy="propagate").pvalue
    mean = differences.mean(axis=-1)
    scale = np.maximum(1.0, np.abs(differences).max(axis=-1))
    equal = differences.std(axis=-1, ddof=1) <= SAME_DIFFERENCE * scale
    without_spread = np.where(np.abs(mean) <= SAME_DIFFERENCE, 1.0, 0.0)
    return np.where(equal, without_spread, known)


def signed_ranks(differences: np.ndarray) -> tuple[float, float]:
    """Return the rank correlation of differences (n,) with their sign, and p of Wilcoxon's test.

    Each difference weighs by the rank of its size, so that no single one decides. The correlation
    is the matched-pairs rank-biserial one, from -1 to 1 (Kerby, 2014). Differences of zero are left
    out; where nothing is left, it is 0, and p is 1. Both are NaN where a difference is NaN.
    """
    if np.isnan(differences).any():
        return math.nan, math.nan
    # Scores that agree but for rounding are equal.
    rounded = np.round(differences, TIE_DECIMALS)
    changed = rounded[rounded != 0]
    if len(changed) == 0:
        return 0.0, 1.0
    ranks = stats.rankdata(np.abs(changed))
    correlation = float((np.sign(changed) * ranks).sum() / ranks.sum())
    return correlation, float(stats.wilcoxon(changed).pvalue)


def sign_flips(differences: np.ndarray) -> float:
    """Return p of the exact sign-flip test of the mean of differences (n,); NaN if one is NaN.

    Raises:
        ValueError: there are more than `MOST_FLIPPED_SEEDS` differences.
    """
    n = len(differences)
    if n > MOST_FLIPPED_SEEDS:
        raise ValueError(
            f"{n} seeds: the exact sign-flip test counts all 2^n flips, "
            f"so it takes at most {MOST_FLIPPED_SEEDS} seeds"
        )
    if np.isnan(differences).any():
        return math.nan
    test = stats.permutation_test(
        (differences,),
        _rounded_mean,
        permutation_type="samples",
        # Without an end, scipy counts every flip instead of drawing some.
        n_resamples=np.inf,
        vectorized=True,
    )
    return float(test.pvalue)


def _rounded_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.round(values.mean(axis=axis), TIE_DECIMALS)


def bootstrap_interval(differences: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of differences (n,); NaN if one is NaN."""
    if np.isnan(differences).any():
        return math.nan, math.nan
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values, in the order given. NaN stays NaN, and is not counted."""
    # scipy.stats has no Holm, and this is little for one dependency more.
    adjusted = list(p_values)
    tested = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    tested.sort(key=lambda index: p_values[index])
    largest_so_far = 0.0
    for position, index in enumerate(tested):
        # The smallest p is multiplied by the number of all, the next by one less, and so on.
        corrected = min(1.0, (len(tested) - position) * p_values[index])
        # No p may come out below that of a smaller one.
        largest_so_far = max(largest_so_far, corrected)
        adjusted[index] = largest_so_far
    return adjusted


def chance_correlation(n: int) -> float:
    """Return the rank correlation over n items that unrelated orders exceed one time in twenty.

    The sign of the correlation does not matter. For fewer than 3 items the answer is 1.
    """
    if n < 3:
        return 1.0
    # t = r sqrt((n - 2) / (1 - r^2)) of a correlation r, solved for r.
    t = float(stats.t.ppf((1 + LEVEL) / 2, n - 2))
    return t / math.sqrt(n - 2 + t * t)
