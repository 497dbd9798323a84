"""Whether ranks fall alike: rank correlations between runs, over the matrices that they share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from dynarank.report.runs import Run


def correlation(first: Run, second: Run) -> float:
    """Spearman's correlation of two runs' ranks over their common matrices; NaN where either's are all equal."""
    names = [name for name in first.ranks if name in second.ranks]
    a, b = [first.ranks[name] for name in names], [second.ranks[name] for name in names]
    return float(stats.spearmanr(a, b)[0]) if len(set(a)) > 1 and len(set(b)) > 1 else math.nan


def rank_agreement(runs: Sequence[Run]) -> float:
    """Mean correlation of every two runs; NaN where there is none."""
    return _mean(
        [
            correlation(first, second)
            for index, first in enumerate(runs)
            for second in runs[index + 1 :]
        ]
    )


def agreement_matrix(groups: Sequence[Sequence[Run]]) -> np.ndarray:
    """Mean correlations (groups, groups) between the runs of any two groups; on the diagonal within one.

    Only runs of different seeds are compared, if there are any: those of one seed start alike, and are shown alike data.
    """
    matrix = np.full((len(groups), len(groups)), np.nan)
    for row, mine in enumerate(groups):
        matrix[row, row] = rank_agreement(mine)
        for column in range(row):
            pairs = [(first, second) for first in mine for second in groups[column]]
            apart = [pair for pair in pairs if pair[0].seed != pair[1].seed] or pairs
            matrix[row, column] = matrix[column, row] = _mean(
                [correlation(*pair) for pair in apart]
            )
    return matrix


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
