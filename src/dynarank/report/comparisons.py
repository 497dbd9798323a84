"""Which differences are more than chance: each setting less a reference, and every two settings.

p is that of the paired t test over seeds, corrected by Holm's method over all that is compared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from dynarank.report.significance import Comparison, compare, holm, paired_t
from dynarank.report.tables import ALPHA, Setting, Table

ALIKE = 5e-5
"""Means that differ by less than this are printed alike."""


class Verdict(StrEnum):
    """What may be said of a difference, or of the highest setting's lead."""

    ALONE = "one setting"
    ONE_SEED = "one seed: not tested"
    MISSING_SCORE = "a score is missing"
    NOT_SIGNIFICANT = "no significant difference"
    ABOVE_SOME = "significantly above some"
    ABOVE_ALL = "significantly above all"
    HIGHER = "significantly higher"
    LOWER = "significantly lower"


@dataclass(frozen=True)
class Difference:
    """A setting less the reference on a task, over the seeds that both have."""

    setting: Setting
    task: str
    comparison: Comparison
    p_holm: float
    """p of the t test, corrected over all settings and tasks."""

    @property
    def verdict(self) -> Verdict:
        """What may be said of the difference."""
        if math.isnan(self.p_holm):
            return Verdict.ONE_SEED if self.comparison.n < 2 else Verdict.MISSING_SCORE
        if self.p_holm > ALPHA:
            return Verdict.NOT_SIGNIFICANT
        return Verdict.HIGHER if self.comparison.difference > 0 else Verdict.LOWER


def differences(table: Table, reference: Setting) -> list[Difference]:
    """Return every other setting less `reference`, on every task with a common seed."""
    compared: list[tuple[Setting, str, Comparison]] = []
    for setting in table.settings:
        for task in table.tasks:
            scores, reference_scores = scores_of_common_seeds(table, task, setting, reference)
            if setting != reference and scores:
                compared.append((setting, task, compare(scores, reference_scores)))
    corrected = holm([comparison.p_t for _, _, comparison in compared])
    found = []
    for (setting, task, comparison), p_holm in zip(compared, corrected, strict=True):
        found.append(Difference(setting=setting, task=task, comparison=comparison, p_holm=p_holm))
    return found


@dataclass(frozen=True)
class Standing:
    """How the settings stand on a task."""

    task: str
    order: list[Setting]
    """The settings by mean score, the highest first; those without a mean are missing."""
    lead: Comparison | None
    """The highest less the second, over the seeds that both have. None where there are no two
    settings, or no common seed."""
    p_holm: float
    """The lead's p, corrected over every pair of settings on every task, because the highest was
    picked after looking."""
    beaten: list[Setting]
    """The settings that the highest is significantly above."""
    pairs: int
    """The number of pairs that the correction counts."""

    @property
    def tied(self) -> bool:
        """Whether the first two differ by less than is printed."""
        if self.lead is None or self.order[1] in self.beaten:
            return False
        return abs(self.lead.difference) < ALIKE

    @property
    def verdict(self) -> Verdict:
        """What may be said of the highest setting."""
        if len(self.order) < 2:
            return Verdict.ALONE
        if self.lead is None or self.lead.n < 2:
            return Verdict.ONE_SEED
        if not self.beaten:
            return Verdict.NOT_SIGNIFICANT
        if len(self.beaten) < len(self.order) - 1:
            return Verdict.ABOVE_SOME
        return Verdict.ABOVE_ALL


def standings(table: Table) -> list[Standing]:
    """Return how the settings stand, for every task in the table's order."""
    pairs: list[tuple[str, Setting, Setting]] = []
    for task in table.tasks:
        # In the order of the means, so that `first` is the higher of each two.
        for first, second in itertools.combinations(table.order(task), 2):
            pairs.append((task, first, second))
    corrected = holm(_p_values(table, pairs))
    p_by_pair = dict(zip(pairs, corrected, strict=True))
    tested = sum(not math.isnan(p) for p in corrected)
    return [_standing(table, task, p_by_pair, tested) for task in table.tasks]


def _standing(
    table: Table, task: str, p_by_pair: dict[tuple[str, Setting, Setting], float], tested: int
) -> Standing:
    order = table.order(task)
    lead, p_holm = None, math.nan
    if len(order) > 1:
        highest, second = scores_of_common_seeds(table, task, order[0], order[1])
        lead = compare(highest, second) if highest else None
        p_holm = p_by_pair[task, order[0], order[1]]
    beaten = []
    for other in order[1:]:
        # The highest mean may be of more seeds, and the lower one on those that both have.
        if p_by_pair[task, order[0], other] <= ALPHA and _leads(table, task, order[0], other):
            beaten.append(other)
    return Standing(task=task, order=order, lead=lead, p_holm=p_holm, beaten=beaten, pairs=tested)


def _leads(table: Table, task: str, first: Setting, second: Setting) -> bool:
    """Return whether a setting's mean is above another's, over the seeds that both have."""
    scores, other_scores = scores_of_common_seeds(table, task, first, second)
    return sum(scores) > sum(other_scores)


def scores_of_common_seeds(
    table: Table, task: str, first: Setting, second: Setting
) -> tuple[list[float], list[float]]:
    """Return two settings' scores on a task, for the seeds that both have, in seeds' order."""
    first_scores, second_scores = table.scores(first, task), table.scores(second, task)
    seeds = sorted(first_scores.keys() & second_scores.keys())
    scores_of_first = [first_scores[seed] for seed in seeds]
    scores_of_second = [second_scores[seed] for seed in seeds]
    return scores_of_first, scores_of_second


def _p_values(table: Table, pairs: Sequence[tuple[str, Setting, Setting]]) -> list[float]:
    """Return p of the paired t test of each pair; NaN for a pair with fewer than two seeds.

    Pairs with the same number of seeds are tested together: a sweep has thousands of them.
    """
    p_values = [math.nan] * len(pairs)
    by_seeds: dict[int, tuple[list[int], list[np.ndarray]]] = {}
    scores = {}
    for task, first, second in pairs:
        for setting in (first, second):
            if (task, setting) not in scores:
                scores[task, setting] = table.scores(setting, task)
    for index, (task, first, second) in enumerate(pairs):
        first_scores, second_scores = scores[task, first], scores[task, second]
        seeds = sorted(first_scores.keys() & second_scores.keys())
        if len(seeds) < 2:
            continue
        row = np.asarray([first_scores[seed] - second_scores[seed] for seed in seeds])
        indices, rows = by_seeds.setdefault(len(seeds), ([], []))
        indices.append(index)
        rows.append(row)
    for indices, rows in by_seeds.values():
        for index, p in zip(indices, paired_t(np.stack(rows)), strict=True):
            p_values[index] = float(p)
    return p_values
