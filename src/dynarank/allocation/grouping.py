"""Group what has the same shape, so that one kernel serves many layers of that shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

STACK_ELEMENTS = 2**20
"""The elements that are stacked at once: 4 MiB in float32, however large the model is."""


def group_indices(keys: Iterable[Hashable]) -> list[list[int]]:
    """Return the positions of equal keys together, both in their order of appearance."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    return list(groups.values())


def chunks(indices: Sequence[int], elements: int) -> Iterator[Sequence[int]]:
    """Split positions of tensors with `elements` each into runs that may be stacked at once."""
    # Layers that were cut to rank 0 have no elements.
    length = max(1, STACK_ELEMENTS // max(1, elements))
    for start in range(0, len(indices), length):
        yield indices[start : start + length]


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors of one shape as one, (L, ...); a view where there is only one of them."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))
