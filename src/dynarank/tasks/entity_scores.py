"""Precision, recall and F1 of entities: one is right where its kind and both ends are.

It is CoNLL-2003's measure, which seqeval gives too (its default mode, micro average).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dynarank.tasks.tag_schemes import Span


@dataclass
class EntityCounts:
    """How many entities there are, were predicted, and were predicted rightly."""

    given: int = 0
    predicted: int = 0
    right: int = 0

    @property
    def precision(self) -> float:
        """The share of the predicted that is right; 0 where none was predicted."""
        return self.right / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """The share of the given that was found; 0 where none was given."""
        return self.right / self.given if self.given else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        # 2 P R / (P + R) reduced, which also holds where precision or recall has no value.
        both = self.given + self.predicted
        return 2 * self.right / both if both else 0.0

    def as_dict(self) -> dict[str, float]:
        """Return the scores and the number of entities given."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "entities": self.given,
        }


def count_entities(
    rows: Iterable[tuple[Sequence[Span], Sequence[Span]]],
) -> tuple[EntityCounts, dict[str, EntityCounts]]:
    """Return the counts of all entities together, and by kind.

    Args:
        rows: the given and the predicted entities of each row.
    """
    given: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for true, guessed in rows:
        given.update(kind for kind, *_ in true)
        predicted.update(kind for kind, *_ in guessed)
        right.update(kind for kind, *_ in set(true) & set(guessed))
    by_kind = {}
    for kind in sorted(given.keys() | predicted.keys()):
        by_kind[kind] = EntityCounts(given[kind], predicted[kind], right[kind])
    whole = EntityCounts(given.total(), predicted.total(), right.total())
    return whole, by_kind


def share_alike(given: Sequence[Sequence[str]], guessed: Sequence[Sequence[str]]) -> float:
    """Return the share of words whose tag is the one given."""
    pairs = list(
        zip(
            itertools.chain.from_iterable(given),
            itertools.chain.from_iterable(guessed),
            strict=True,
        )
    )
    return sum(true == tag for true, tag in pairs) / len(pairs) if pairs else 0.0
