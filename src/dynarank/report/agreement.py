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
    runs = [run for group in groups for run in group]
    matrix = correlations(runs)
    seeds = np.asarray([run.seed for run in runs])
    ends = np.cumsum([len(group) for group in groups])
    spans = [slice(end - len(group), end) for end, group in zip(ends, groups, strict=True)]
    means = np.full((len(groups), len(groups)), np.nan)
    for row, group in enumerate(groups):
        within = np.triu_indices(len(group), k=1)
        means[row, row] = _mean(matrix[spans[row], spans[row]][within])
        for column in range(row):
            block = matrix[spans[row], spans[column]]
            apart = seeds[spans[row], None] != seeds[None, spans[column]]
            mean = _mean(block[apart] if apart.any() else block)
            means[row, column] = means[column, row] = mean
    return means


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN where there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
