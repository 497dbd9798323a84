"""How far allocations spread, against how far seeds do: what an allocation can win at all.

For one task and budget, the scores of p placements under the same n seeds are split as usual, a
placement's part, a seed's part, and a rest (two-way analysis of variance without replication).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy import stats

from dynarank.report.bench_pairs import ALPHA, compared
from dynarank.report.bench_sections import Grid, Section, a_matrix, listed, plain, signed, small
from dynarank.report.significance import holm
from dynarank.sweeps.bench import BASELINE, Cell

FIXED = (
    BASELINE,
    "lora_feed_forward",
    "lora_query_value",
    "lora_attention",
    "lora_first_layers",
    "lora_last_layers",
)
"""Arms whose placement is the same under every seed."""
DRAWN = "lora_random"
"""The arm whose placement is drawn anew with every seed."""


@dataclass(frozen=True)
class Spread:
    """The scores of placements under the same seeds, on one task under one budget."""

    budget: float
    task: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    between: float
    """The standard deviation of the placements' own part: what is left of the spread of their
    means once the rest's share is taken off; zero where the rest explains it all."""
    within: float
    """The standard deviation over seeds of one placement, pooled."""
    p: float
    """p of the F test of the placements' part."""
    best: str
    gain: float
    """The best placement's mean less the baseline's, which flatters: it was chosen after the
    fact. NaN without the baseline."""
    honest: float
    """The same, where each seed takes the placement that was best on the other seeds."""
    drawn: float
    """The standard deviation over seeds where each draws its own placement; NaN without."""


def spreads(cells: Sequence[Cell]) -> list[Spread]:
    """Return the spreads by budget and task, where two placements have two seeds in common.

    A placement that has run on one seed alone, as in a bench under way, is left out.
    """
    table: dict[tuple[float, str], dict[str, dict[int, float]]] = {}
    for cell in compared(cells):
        if cell.arm in (*FIXED, DRAWN):
            arms = table.setdefault((cell.budget, cell.task), {})
            arms.setdefault(cell.arm, {})[cell.seed] = cell.score
    found = []
    # By budget alone: the order of tasks stays that of the file.
    for (budget, task), arms in sorted(table.items(), key=lambda item: item[0][0]):
        # With it, no two seeds would be common to all, and the task would be gone.
        fixed = {arm: arms[arm] for arm in FIXED if len(arms.get(arm, ())) >= 2}
        if len(fixed) < 2:
            continue
        seeds = _common_seeds(list(fixed.values()))
        if len(seeds) >= 2:
            drawn = list(arms.get(DRAWN, {}).values())
            found.append(_spread(budget, task, fixed, seeds, drawn))
    return found


def _common_seeds(scores: Sequence[dict[int, float]]) -> list[int]:
    """Return the seeds that every arm has a score of, by seed, in order."""
    common = set(scores[0])
    for of_arm in scores[1:]:
        common &= set(of_arm)
    return sorted(common)


def _spread(
    budget: float,
    task: str,
    arms: dict[str, dict[int, float]],
    seeds: list[int],
    drawn: Sequence[float],
) -> Spread:
    names = tuple(arms)
    scores = np.empty((len(names), len(seeds)))  # (placements, seeds)
    for row, arm in enumerate(names):
        scores[row] = [arms[arm][seed] for seed in seeds]
    between, p = variance_between(scores)
    variances = scores.var(axis=1, ddof=1)  # over the seeds of one placement
    means = scores.mean(axis=1)
    best = int(means.argmax())
    gain = honest = math.nan
    if BASELINE in names:
        base = names.index(BASELINE)
        gain = float(means[best] - means[base])
        honest = chosen_on_other_seeds(scores, base)
    return Spread(
        budget=budget,
        task=task,
        arms=names,
        seeds=tuple(seeds),
        between=between,
        within=float(math.sqrt(variances.mean())),
        p=p,
        best=names[best],
        gain=gain,
        honest=honest,
        drawn=float(np.std(drawn, ddof=1)) if len(drawn) > 1 else math.nan,
    )


def variance_between(scores: np.ndarray) -> tuple[float, float]:
    """Return the rows' own standard deviation, and p of its F test, of scores (rows, columns)."""
    rows, columns = scores.shape
    row_means = scores.mean(axis=1, keepdims=True)
    column_means = scores.mean(axis=0, keepdims=True)
    rest = scores - row_means - column_means + scores.mean()
    # Degrees of freedom of the rows' part and of the rest.
    row_freedom = rows - 1
    rest_freedom = (rows - 1) * (columns - 1)
    row_square = columns * float(row_means.var(ddof=1))
    rest_square = float((rest**2).sum()) / rest_freedom
    # A row's mean varies by the row's own part and by the rest over `columns`. By chance the
    # difference may fall below zero.
    between = math.sqrt(max(0.0, (row_square - rest_square) / columns))
    # So small are the squares of rounding errors alone, whose ratio says nothing.
    if rest_square <= 1e-24:
        return between, 1.0 if row_square <= 1e-24 else 0.0
    return between, float(stats.f.sf(row_square / rest_square, row_freedom, rest_freedom))


def chosen_on_other_seeds(scores: np.ndarray, base: int) -> float:
    """Return what choosing a row wins over row `base`, each column judged by the others' choice.

    Args:
        scores: (rows, columns) with two columns or more.
        base: the row that is the reference.
    """
    gains = []
    for column in range(scores.shape[1]):
        others = np.delete(scores, column, axis=1).mean(axis=1)
        gains.append(float(scores[int(others.argmax()), column] - scores[base, column]))
    return fmean(gains)


def spread_section(cells: Sequence[Cell]) -> Section:
    """Answer how much an allocation can win."""
    title = "1. How far do allocations spread, against seeds?"
    found = spreads(cells)
    if not found:
        text = "The data carry no answer: no task has two fixed placements under two seeds alike."
        return Section(title, text)
    adjusted = holm([one.p for one in found])
    sentences = []
    judged = list(zip(found, adjusted, strict=True))
    for budget in sorted({one.budget for one in found}):
        of_budget = [(one, p) for one, p in judged if one.budget == budget]
        sentences.append(_sentence(budget, of_budget))
    rows = [_row(one, p) for one, p in judged]
    headings = (
        "budget",
        "task",
        "placements",
        "seeds",
        "sd of placements",
        "sd of seeds",
        "sd, each seed its own random placement",
        "p, Holm",
        "best",
        "best less even",
        "best on the other seeds less even",
    )
    return Section(title, " ".join(sentences), [Grid(headings, rows)])


def _row(one: Spread, p: float) -> list[str]:
    """Return a line of the section's table; p is corrected."""
    return [
        f"{one.budget:g}",
        one.task,
        str(len(one.arms)),
        str(len(one.seeds)),
        plain(one.between, 4),
        plain(one.within, 4),
        plain(one.drawn, 4),
        small(p),
        one.best,
        signed(one.gain),
        signed(one.honest),
    ]


def _sentence(budget: float, found: Sequence[tuple[Spread, float]]) -> str:
    clear = [one.task for one, p in found if p < ALPHA]
    where = f" ({listed(clear)})" if clear else ""
    between = math.sqrt(fmean(one.between**2 for one, _ in found))
    within = math.sqrt(fmean(one.within**2 for one, _ in found))
    honest = [one.honest for one, _ in found if not math.isnan(one.honest)]
    sentence = (
        f"At {a_matrix(budget)}, fixed placements spread by {between:.4f} (standard "
        f"deviation) and the seeds of one placement by {within:.4f}; the placements differ by more "
        f"than chance on {len(clear)} of {len(found)} tasks{where}, p < {ALPHA} after Holm"
    )
    if honest:
        sentence += (
            ", and a placement chosen by the task's other seeds wins "
            f"{fmean(honest):+.4f} over the even one"
        )
    return f"{sentence}."
