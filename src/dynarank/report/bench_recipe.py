"""What this library's recipe was to show: better below one component a matrix, no worse above.

The claim was written down before its runs, so that it has a family of its own for Holm's
correction: the three methods that the recipe is held against. The arms and questions that came
later do not weaken it, and their own corrections do not profit from it.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynarank.report.bench_pairs import ALPHA, Difference, compared, pooled_differences
from dynarank.report.bench_sections import Grid, Section, difference_grid, listed, signed
from dynarank.sweeps.bench import BASELINE, BUDGETS, Cell

RECIPE = "dynarank"
RIVALS = (BASELINE, "adalora", "paper_from_two")
"""What it should beat below one component a matrix. The paper's method starts from two there: from
one, its scores are all alike."""
CLAIMED = tuple(budget for budget in BUDGETS if budget < 1)
"""The budgets below one that were planned with the claim. Others came later, and do not count."""
NAMES = {
    BASELINE: "evenly placed LoRA",
    "adalora": "AdaLoRA",
    "paper_from_two": "the paper's method",
}
TITLE = "The recipe"


def below_one(cells: Sequence[Cell]) -> list[Difference]:
    """Return the recipe less each rival, over all planned budgets below one together."""
    return pooled_differences(cells, [(RECIPE, rival) for rival in RIVALS], CLAIMED)


def from_one(cells: Sequence[Cell]) -> list[Difference]:
    """Return the recipe less the baseline under each budget from one, none of them corrected.

    They look for harm, so that a correction would hide it.
    """
    found = []
    for budget in sorted({cell.budget for cell in compared(cells) if cell.budget >= 1}):
        found += pooled_differences(cells, [(RECIPE, BASELINE)], {budget})
    return found


def recipe_section(cells: Sequence[Cell]) -> Section:
    """Say what the runs show of the claim."""
    below, above = below_one(cells), from_one(cells)
    if not any(one.judged for one in [*below, *above]):
        return Section(TITLE, "The data carry no answer: the recipe has too few pairs.", [])
    return Section(TITLE, claim(cells), _grids(below, above))


def claim(cells: Sequence[Cell]) -> str:
    """Return what is shown in up to three sentences; nothing where there are too few pairs."""
    parts = []
    judged = [one for one in below_one(cells) if one.judged]
    if judged:
        by_mean = [one.verdict for one in judged]
        by_ranks = [one.rank_verdict for one in judged]
        parts.append(f"Below one component a matrix, `{RECIPE}` is {_verdicts(judged, by_mean)}.")
        # A mean is at the mercy of single runs that learned nothing; both answers are wanted.
        parts.append(f"By signed ranks it is {_verdicts(judged, by_ranks)}.")
    judged = [one for one in from_one(cells) if one.judged]
    if judged:
        parts.append(f"{_from_one_words(judged)}.")
    return " ".join(parts)


def _verdicts(found: Sequence[Difference], verdicts: Sequence[int]) -> str:
    """Say, for each verdict, against whom and by how much."""
    words = []
    for verdict, text in ((1, "better than"), (0, "not shown to differ from"), (-1, "worse than")):
        named = [_against(one) for one, its in zip(found, verdicts, strict=True) if its == verdict]
        if named:
            words.append(f"{text} {listed(named)}")
    return "; ".join(words) + f" (p < {ALPHA} after Holm)"


def _against(one: Difference) -> str:
    return f"{NAMES[one.against]} ({signed(one.scores.difference, 3)} on {one.scores.n} pairs)"


def _from_one_words(found: Sequence[Difference]) -> str:
    words = []
    for one in found:
        verdict = {1: "better", 0: "not shown to differ", -1: "worse"}[one.verdict]
        change = signed(one.scores.difference, 3)
        words.append(f"{verdict} at {one.budget:g} ({change})")
    return f"Against evenly placed LoRA it is {listed(words)}, uncorrected"


def _grids(below: Sequence[Difference], above: Sequence[Difference]) -> list[Grid]:
    return [difference_grid(found) for found in (below, above) if found]
