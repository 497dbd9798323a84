"""Which texts are nearly the same, so that none of a pair is trained on and the other scored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

COMPARED = 512
"""Texts that are compared with all others at a time, to bound memory."""


def split_by_groups(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return which members go to validation, (n) bool: about `share` of them, groups kept whole."""
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    sizes = np.bincount(groups)[order]
    # Whole groups in a random order, up to the share.
    chosen = order[np.cumsum(sizes) <= share * len(groups)]
    return np.isin(groups, chosen)


def joined_groups(groups: np.ndarray, sources: Sequence[str]) -> np.ndarray:
    """Return groups, (n) int, in which members of one group or of one source are together."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    names = {name: place for place, name in enumerate(dict.fromkeys(sources))}
    # Groups and sources are the two sides of one graph, which each member joins.
    source = np.array([names[name] for name in sources]) + groups.max() + 1
    size = int(source.max()) + 1
    pairs = csr_matrix((np.ones(len(groups)), (groups, source)), shape=(size, size))
    return np.asarray(connected_components(pairs, directed=False)[1])[groups]


def duplicate_groups(texts: list[str], same: float) -> np.ndarray:
    """Return a group number for each text, (n) int.

    Texts are in one group that are joined by a chain of pairs which share `same` of their words
    (Jaccard).
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    bags = _word_bags(texts)
    words = np.diff(bags.indptr)  # of each text
    first, second = [], []  # the two texts of each pair
    for start in range(0, len(texts), COMPARED):
        # A sparse matrix: for each pair of texts with a word in common, how many they share.
        common = bags[start : start + COMPARED] @ bags.T
        row = start + np.repeat(np.arange(common.shape[0]), np.diff(common.indptr))
        # Few pairs share so many words of one of them, which their union has at least.
        near = np.flatnonzero(common.data >= same * words[row])
        row, column, shared = row[near], common.indices[near], common.data[near]
        union = words[row] + words[column] - shared
        alike = shared >= same * union
        first.append(row[alike])
        second.append(column[alike])
    ends = (np.concatenate(first), np.concatenate(second))
    shape = (len(texts), len(texts))
    pairs = csr_matrix((np.ones(len(ends[0])), ends), shape=shape)
    _, groups = connected_components(pairs, directed=False)
    return np.asarray(groups)


def _word_bags(texts: list[str]) -> Any:
    """Return which text has which word, a sparse matrix (n, words) of ones."""
    from scipy.sparse import csr_matrix

    vocabulary: dict[str, int] = {}
    rows, columns = [], []
    for row, text in enumerate(texts):
        for word in sorted(set(re.findall(r"\w+|[^\w\s]+", text.lower()))):
            rows.append(row)
            columns.append(vocabulary.setdefault(word, len(vocabulary)))
    shape = (len(texts), len(vocabulary))
    ones = np.ones(len(columns), dtype=np.int32)
    return csr_matrix((ones, (rows, columns)), shape=shape)
