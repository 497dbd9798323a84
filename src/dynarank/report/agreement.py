"""Whether ranks fall alike: rank correlations between runs, over the matrices that they share.

Legend: rho is Spearman's rank correlation. It is NaN where a run's ranks are all equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from dynarank.report.runs import Run


def correlations(runs: Sequence[Run]) -> np.ndarray:
    """Return rho of every two runs, (runs, runs)."""
    # One product of matrices for all runs of like layouts: a sweep has thousands of pairs.
    by_layout: dict[tuple[str, ...], list[int]] = {}
    for index, run in enumerate(runs):
        by_layout.setdefault(tuple(run.ranks), []).append(index)
    matrix = np.full((len(runs), len(runs)), np.nan)
    for names, rows in by_layout.items():
        for other_names, columns in by_layout.items():
            known = set(other_names)
            common = [name for name in names if name in known]
            if len(common) < 2:
                continue
            first = _standardized([runs[row] for row in rows], common)
            second = _standardized([runs[column] for column in columns], common)
            matrix[np.ix_(rows, columns)] = first @ second.T
    return matrix


def _standardized(runs: Sequence[Run], names: Sequence[str]) -> np.ndarray:
    """Return the orders of the runs' ranks, (runs, names), centred and of norm one.

    The product of two rows is then Spearman's correlation. Ranks that are all equal give NaN.
    """
    ranks = np.empty((len(runs), len(names)))
    for row, run in enumerate(runs):
        ranks[row] = [run.ranks[name] for name in names]
    orders = stats.rankdata(ranks, axis=1)
    centred = orders - orders.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(norms > 0, norms, np.nan)


def rank_agreement(runs: Sequence[Run]) -> float:
    """Return the mean rho of every two runs; NaN where there is none."""
    upper = np.triu_indices(len(runs), k=1)
    return _mean(correlations(runs)[upper])


def agreement_matrix(groups: Sequence[Sequence[Run]]) -> np.ndarray:
    """Return the mean rho between the runs of any two groups, (groups, groups).

    The diagonal holds the agreement within a group. Between two groups only runs of different
    seeds are compared, if there are any: runs of one seed start alike and see alike data.
    """
    runs: list[Run] = []
    places: list[slice] = []  # of each group among all runs
    for group in groups:
        places.append(slice(len(runs), len(runs) + len(group)))
        runs += group
    rho = correlations(runs)  # (runs, runs)
    seeds = np.asarray([run.seed for run in runs])
    means = np.full((len(groups), len(groups)), np.nan)
    for row, group in enumerate(groups):
        own_rho = rho[places[row], places[row]]
        pairs = np.triu_indices(len(group), k=1)  # each pair once, no run with itself
        means[row, row] = _mean(own_rho[pairs])
        for column in range(row):
            between = rho[places[row], places[column]]
            other_seed = seeds[places[row], None] != seeds[None, places[column]]
            if other_seed.any():
                between = between[other_seed]
            means[row, column] = means[column, row] = _mean(between)
    return means


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN where there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
