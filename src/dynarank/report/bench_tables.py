"""What a bench of methods says: its answer in a sentence, and the tables behind it.

Differences are paired: an arm's score less the baseline's of the same task, budget and seed, each
arm at its own tuned rate. Holm's correction runs over all arms and budgets that are compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from dynarank.errors import UserError
from dynarank.report.significance import Comparison, compare, holm
from dynarank.sweeps.bench import BASELINE, TUNING_SEED, Cell, best_rate

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
"""Between these lines of a page stand the tables, and nothing else."""
LEAST_PAIRS = 6
"""Fewer pairs are shown, and not judged."""
ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """An arm's scores less the baseline's under a budget."""

    arm: str
    budget: float
    tasks: tuple[str, ...]
    scores: Comparison
    losses: Comparison
    effect: float
    """The mean difference over the differences' standard deviation; NaN for one pair."""
    adjusted: float
    """p of the paired t test on the scores, after Holm."""


def differences(cells: Sequence[Cell]) -> list[Difference]:
    """Return every arm's difference from the baseline, by budget, in the order of the file."""
    compared = [cell for cell in cells if cell.seed != TUNING_SEED and not math.isnan(cell.score)]
    baseline = {
        (cell.task, cell.budget, cell.seed): cell for cell in compared if cell.arm == BASELINE
    }
    pairs: dict[tuple[float, str], list[tuple[Cell, Cell]]] = {}
    for cell in compared:
        other = baseline.get((cell.task, cell.budget, cell.seed))
        if cell.arm != BASELINE and other is not None:
            pairs.setdefault((cell.budget, cell.arm), []).append((cell, other))
    found = []
    for (budget, arm), of_arm in sorted(pairs.items()):
        scores = compare([a.score for a, _ in of_arm], [b.score for _, b in of_arm])
        losses = compare([a.loss for a, _ in of_arm], [b.loss for _, b in of_arm])
        difference = Difference(
            arm=arm,
            budget=budget,
            tasks=tuple(dict.fromkeys(cell.task for cell, _ in of_arm)),
            scores=scores,
            losses=losses,
            effect=_effect([a.score - b.score for a, b in of_arm]),
            adjusted=math.nan,
        )
        found.append(difference)
    adjusted = holm([difference.scores.p_t for difference in found])
    return [replace(one, adjusted=p) for one, p in zip(found, adjusted, strict=True)]


def _effect(values: Sequence[float]) -> float:
    """Return the mean over the sample standard deviation; NaN where there is none."""
    if len(values) < 2:
        return math.nan
    mean = fmean(values)
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean / sd if sd > 0 else math.nan


def answer(cells: Sequence[Cell]) -> str:
    """Return the bench's answer in a sentence for each budget, or say that it is open."""
    judged = [d for d in differences(cells) if d.scores.n >= LEAST_PAIRS]
    if not judged:
        return (
            "Not yet answered: no method has been compared with evenly placed LoRA on as many as "
            f"{LEAST_PAIRS} pairs of task and seed."
        )
    sentences = []
    for budget in sorted({difference.budget for difference in judged}):
        of_budget = [d for d in judged if d.budget == budget]
        better = [d.arm for d in of_budget if d.adjusted < ALPHA and d.scores.difference > 0]
        worse = [d.arm for d in of_budget if d.adjusted < ALPHA and d.scores.difference < 0]
        tasks = ", ".join(dict.fromkeys(task for d in of_budget for task in d.tasks))
        what = [f"{' and '.join(better)} better" if better else "none better"]
        if worse:
            what.append(f"{' and '.join(worse)} worse")
        sentences.append(
            f"At {budget:g} components a matrix ({tasks}), of {len(of_budget)} methods, each tuned "
            f"alike, {', '.join(what)} than evenly placed LoRA (p < {ALPHA} after Holm)."
        )
    return " ".join(sentences)


def tables(cells: Sequence[Cell]) -> str:
    """Return the answer, the differences, the means and the tuned rates, as markdown."""
    parts = [answer(cells), "", *_difference_rows(cells), "", *_mean_rows(cells), "", _cost(cells)]
    return "\n".join(parts)


def _difference_rows(cells: Sequence[Cell]) -> list[str]:
    lines = [
        "| budget | method less lora_even | pairs | score | 95 % interval | effect | "
        "p, Holm | loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in differences(cells):
        scores = row.scores
        lines.append(
            f"| {row.budget:g} | {row.arm} | {scores.n} | {scores.difference:+.4f} | "
            f"{scores.low:+.4f} to {scores.high:+.4f} | {row.effect:+.2f} | {row.adjusted:.3f} | "
            f"{row.losses.difference:+.4f} |"
        )
    return lines


def _mean_rows(cells: Sequence[Cell]) -> list[str]:
    lines = [
        "| budget | task | method | tuned rate | seeds | mean score | mean loss | parameters |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[float, str, str], list[Cell]] = {}
    for cell in cells:
        group = groups.setdefault((cell.budget, cell.task, cell.arm), [])
        if cell.seed != TUNING_SEED and not math.isnan(cell.score):
            group.append(cell)
    for (budget, task, arm), group in groups.items():
        rate = best_rate(cells, arm, task, budget)
        shown = f"{rate:g}" if rate is not None else "none"
        figures = ["", "", ""]
        if group:
            sizes = sorted({cell.parameters for cell in group})
            size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
            figures = [
                f"{fmean(cell.score for cell in group):.4f}",
                f"{fmean(cell.loss for cell in group):.4f}",
                size,
            ]
        cells_of_row = [f"{budget:g}", task, arm, shown, str(len(group)), *figures]
        lines.append(f"| {' | '.join(cells_of_row)} |")
    return lines


def _cost(cells: Sequence[Cell]) -> str:
    seconds = sum(cell.seconds for cell in cells)
    failed = sum(math.isnan(cell.score) for cell in cells)
    return (
        f"{len(cells)} cells, {failed} of them failed, {seconds / 3600:.1f} hours by the clock of "
        "one thread, on cores that other work shared."
    )


def update_page(page: Path, cells: Sequence[Cell]) -> None:
    """Write the tables between the page's two marks.

    Raises:
        UserError: the page lacks them.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{page}: has no lines {BEGIN} and {END} to write the tables between")
    page.write_text(f"{before}{BEGIN}\n\n{tables(cells)}\n\n{END}{after}", encoding="utf-8")
