"""What this library's recipe is to show: better below one component a matrix, no worse above.

The claim was written down before any recipe ran, so that it has a family of its own for Holm's
correction: the methods that the recipe is held against. The arms and questions that came later do
not weaken it, and their own corrections do not profit from it. The recipe of now took the place of
an earlier one. It is held to the same, and to LoRA with small components, the stronger LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dynarank.report.bench_pairs import ALPHA, Difference, compared, pooled_differences
from dynarank.report.bench_sections import Grid, Section, difference_grid, listed, signed
from dynarank.sweeps.bench import BASELINE, BUDGETS, SEEDS, Cell
from dynarank.sweeps.bench_tuning import is_tuning

RECIPE = "dynarank"
RIVALS = (BASELINE, "lora_even_alpha_1", "adalora", "paper_from_two")
"""What it should beat below one component a matrix. The paper's method starts from two there: from
one, its scores are all alike."""
UNTUNED = ("dynarank_at_1e-2", "dynarank_at_5e-3")
"""The recipe at one rate on every task and under every budget."""
CLAIMED = tuple(budget for budget in BUDGETS if budget < 1)
"""The budgets below one that were planned with the claim. Others came later, and do not count."""
NAMES = {
    BASELINE: "evenly placed LoRA",
    "lora_even_alpha_1": "evenly placed LoRA at alpha 1",
    "adalora": "AdaLoRA",
    "paper_from_two": "the paper's method",
}
TITLE = "The recipe"
UNTUNED_TITLE = "9. The recipe at one rate, against methods that are tuned"
FIRST, LATER, ALL = "first seeds", "later seeds", "all seeds"


def below_one(cells: Sequence[Cell]) -> list[Difference]:
    """Return the recipe less each rival, over all planned budgets below one together."""
    return pooled_differences(cells, [(RECIPE, rival) for rival in RIVALS], CLAIMED)


def by_seeds(cells: Sequence[Cell]) -> dict[str, list[Difference]]:
    """Return `below_one` of the planned seeds, of those that came later, and of all.

    Seeds that were added when the answer of the planned ones was known repeat the experiment. What
    they show is an answer of their own. Comparisons that are not judged are left out.
    """
    first, later = [], []
    for cell in cells:
        # The runs that chose the rates belong to both.
        if is_tuning(cell) or cell.seed in SEEDS:
            first.append(cell)
        if is_tuning(cell) or cell.seed not in SEEDS:
            later.append(cell)
    found = {}
    for name, part in ((FIRST, first), (LATER, later), (ALL, cells)):
        found[name] = [one for one in below_one(part) if one.judged]
    return found


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
    answer = claim(cells)
    if not answer:
        return Section(TITLE, "The data carry no answer: the recipe has too few pairs.", [])
    grids = []
    below = by_seeds(cells)
    for seeds in (FIRST, LATER, ALL) if below[LATER] else (ALL,):
        grids.append(difference_grid(below[seeds], seeds))
    grids.append(difference_grid(from_one(cells)))
    grids = [grid for grid in grids if grid.rows]
    return Section(TITLE, answer, grids)


def one_rate_section(cells: Sequence[Cell]) -> Section:
    """Say what the recipe is worth at one rate throughout, where its rivals are tuned.

    Holm's correction runs over the rivals, as in the claim. Under each budget alone it runs over
    them and the tuned recipe, from which the recipe at one rate shows what tuning is worth.
    """
    sentences: list[str] = []
    shown: list[Difference] = []
    budgets = sorted({cell.budget for cell in cells})
    for arm in UNTUNED:
        found = pooled_differences(cells, [(arm, rival) for rival in RIVALS], CLAIMED)
        judged = [one for one in found if one.judged]
        if judged:
            words = _verdicts(judged, [one.verdict for one in judged], _by_how_much)
            sentences.append(f"Below one component a matrix `{arm}` is {words}.")
        shown += judged
        others = [(arm, other) for other in (RECIPE, *RIVALS)]
        for budget in budgets:
            shown += pooled_differences(cells, others, {budget})
    if not sentences:
        return Section(UNTUNED_TITLE, "The data carry no answer: it has too few pairs.", [])
    return Section(UNTUNED_TITLE, " ".join(sentences), [difference_grid(shown)])


def claim_grid(cells: Sequence[Cell]) -> Grid:
    """Return the claim at a glance: a row for each rival, and what is shown in bold.

    Means are judged by t, pairs won by signed ranks, both after Holm.
    """
    below = by_seeds(cells)
    means = [FIRST, LATER] if below[LATER] else [ALL]
    found: dict[str, dict[str, Difference]] = {}
    for name, of_seeds in below.items():
        found[name] = {one.against: one for one in of_seeds}
    rows = []
    for rival in RIVALS:
        if rival not in found[ALL]:
            continue
        row = [NAMES[rival]]
        for name in means:
            one = found[name].get(rival)
            shown = "" if one is None else signed(one.scores.difference, 3)
            row.append(_bold(shown, one is not None and one.verdict != 0))
        over_all = found[ALL][rival]
        row.append(_bold(f"{over_all.won} of {over_all.scores.n}", over_all.rank_verdict != 0))
        rows.append(row)
    return Grid((f"`{RECIPE}` less", *means, "pairs won, all seeds"), rows)


def _bold(text: str, shown: bool) -> str:
    return f"**{text}**" if shown else text


def claim(cells: Sequence[Cell]) -> str:
    """Return what is shown in a few sentences; nothing where there are too few pairs."""
    parts = []
    below = by_seeds(cells)
    if below[FIRST]:
        by_mean = [one.verdict for one in below[FIRST]]
        words = _verdicts(below[FIRST], by_mean, _by_how_much)
        seeds = ", on the seeds that were planned" if below[LATER] else ""
        parts.append(f"Below one component a matrix{seeds}, `{RECIPE}` is {words}.")
    if below[LATER]:
        by_mean = [one.verdict for one in below[LATER]]
        words = _verdicts(below[LATER], by_mean, _by_how_much)
        parts.append(f"On seeds that were added later it is {words}.")
    if below[ALL]:
        # A mean is at the mercy of single runs that learned nothing; both answers are wanted.
        by_ranks = [one.rank_verdict for one in below[ALL]]
        words = _verdicts(below[ALL], by_ranks, _how_often)
        parts.append(f"By signed ranks over all seeds it is {words}.")
    judged = [one for one in from_one(cells) if one.judged]
    if judged:
        parts.append(f"{_from_one_words(judged)}.")
    return " ".join(parts)


def _verdicts(
    found: Sequence[Difference], verdicts: Sequence[int], shown: Callable[[Difference], str]
) -> str:
    """Say, for each verdict, against whom, and what is to be `shown` of it."""
    words = []
    for verdict, text in ((1, "better than"), (0, "not shown to differ from"), (-1, "worse than")):
        named = []
        for one, its_verdict in zip(found, verdicts, strict=True):
            if its_verdict == verdict:
                named.append(f"{NAMES[one.against]} ({shown(one)})")
        if named:
            words.append(f"{text} {listed(named)}")
    return "; ".join(words) + f" (p < {ALPHA} after Holm)"


def _by_how_much(one: Difference) -> str:
    return f"{signed(one.scores.difference, 3)} on {one.scores.n} pairs"


def _how_often(one: Difference) -> str:
    return f"{one.won} of {one.scores.n} pairs won"


def _from_one_words(found: Sequence[Difference]) -> str:
    words = []
    for one in found:
        verdict = {1: "better", 0: "not shown to differ", -1: "worse"}[one.verdict]
        change = signed(one.scores.difference, 3)
        words.append(f"{verdict} at {one.budget:g} ({change})")
    return f"Against evenly placed LoRA it is {listed(words)}, uncorrected"
