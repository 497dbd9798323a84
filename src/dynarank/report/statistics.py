"""Statistics of few seeds: what is known of a mean, and of a difference between two settings run on the same seeds.

Legend: n seeds. All tests are two-sided.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
EXACT_LIMIT = 16
"""Seeds up to which all 2^n sign flips are counted."""


@dataclass(frozen=True)
class Summary:
    """A setting's scores over seeds."""

    mean: float
    sd: float
    """Sample standard deviation (n - 1); NaN for one seed."""
    n: int
    low: float
    """95 % interval of the mean, by Student's t; NaN for one seed."""
    high: float
    undefined: int = 0
    """Seeds whose score is NaN; with one, there is no mean: leaving out what failed would flatter the rest."""


def summarize(values: Sequence[float]) -> Summary:
    """Mean, spread and interval of at least one value."""
    scores = np.asarray(values, dtype=float)
    n, mean = len(scores), float(scores.mean())
    if n == 1 or math.isnan(mean):
        return Summary(mean, math.nan, n, math.nan, math.nan, int(np.isnan(scores).sum()))
    sd = float(scores.std(ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    return Summary(mean, sd, n, mean - half, mean + half)


@dataclass(frozen=True)
class Comparison:
    """A setting less another, paired by seed."""

    difference: float
    n: int
    low: float
    """95 % paired bootstrap interval."""
    high: float
    p_t: float
    """Paired t test."""
    p_permutation: float
    """Exact sign-flip test; cannot fall below 2 / 2^n: 0.0625 with 5 seeds. NaN beyond `EXACT_LIMIT` seeds."""


def compare(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Comparison:
    """First less second, value by value. Raises `ValueError` for unequal numbers. NaN where 2 seeds are not at hand."""
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return Comparison(mean, n, math.nan, math.nan, math.nan, math.nan)
    low, high = _bootstrap(differences, seed)
    exact = permutation(differences) if n <= EXACT_LIMIT else math.nan
    return Comparison(mean, n, low, high, paired_t(differences), exact)


def paired_t(differences: np.ndarray) -> float:
    """p of the paired t test; 1 where all differences are zero, 0 where they are equal and not."""
    sd = float(differences.std(ddof=1))
    if sd <= 1e-12 * max(1.0, float(np.abs(differences).max())):
        return 1.0 if abs(float(differences.mean())) <= 1e-12 else 0.0
    t = float(differences.mean()) / (sd / math.sqrt(len(differences)))
    return float(2 * stats.t.sf(abs(t), len(differences) - 1))


def permutation(differences: np.ndarray) -> float:
    """p of the exact sign-flip test of the mean; NaN if a difference is. Raises `ValueError` beyond `EXACT_LIMIT` seeds."""
    if len(differences) > EXACT_LIMIT:
        raise ValueError(
            f"{len(differences)} seeds: the exact test counts 2^n flips, and stops at n = {EXACT_LIMIT}"
        )
    if np.isnan(differences).any():
        return math.nan
    flips = np.asarray(list(itertools.product((1, -1), repeat=len(differences))))
    means = np.abs((flips * differences).mean(axis=1))
    return float((means >= abs(float(differences.mean())) - 1e-12).mean())


def _bootstrap(differences: np.ndarray, seed: int, resamples: int = 10_000) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    means = rng.choice(differences, size=(resamples, len(differences))).mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given; NaN stays, and is not counted."""
    known = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    adjusted, running = list(p_values), 0.0
    for rank, index in enumerate(sorted(known, key=lambda one: p_values[one])):
        running = max(running, min(1.0, (len(known) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def chance_correlation(n: int) -> float:
    """The rank correlation over n things that unrelated orders exceed, either way, one time in twenty; 1 for n < 3."""
    if n < 3:
        return 1.0
    t = float(stats.t.ppf((1 + LEVEL) / 2, n - 2))
    return t / math.sqrt(n - 2 + t * t)
