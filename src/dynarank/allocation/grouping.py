"""Group what has the same shape, so that one kernel serves all layers of that shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable


def group_indices(keys: Iterable[Hashable]) -> list[list[int]]:
    """Return the positions of equal keys together, both in their order of appearance."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    return list(groups.values())
