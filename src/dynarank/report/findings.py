"""What the scores show, in sentences: which setting is highest, by how much, and how surely."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynarank.report.comparisons import Standing, Verdict
from dynarank.report.tables import Setting, Table


def headline(table: Table, found: Sequence[Standing]) -> str:
    """Return the one sentence that matters."""
    if len(found) == 1:
        return f"{found[0].task}: {in_short(table, found[0])}"
    compared = [standing for standing in found if len(standing.order) > 1]
    if not compared:
        return f"One setting on {len(found)} tasks: there is nothing to compare."
    several = max(len(standing.order) for standing in compared) > 2
    others = "every other" if several else "the other"
    sure = [standing for standing in compared if standing.verdict is Verdict.ABOVE_ALL]
    if sure:
        names = "; ".join(f"{one.task}: {table.label(one.order[0])}" for one in sure)
        return (
            f"On {len(sure)} of {len(compared)} tasks the highest setting is significantly above "
            f"{others}. {names}."
        )
    if all(standing.verdict is Verdict.ONE_SEED for standing in compared):
        return (
            f"One seed each on {len(compared)} tasks: "
            "whether the best setting is better than chance cannot be tested."
        )
    return f"On none of {len(compared)} tasks is the highest setting significantly above {others}."


def in_short(table: Table, standing: Standing) -> str:
    """Return a task's result without the numbers behind the verdict."""
    if len(standing.order) < 2 or standing.tied:
        return sentence(table, standing)
    label = table.label(standing.order[0])
    reached = f"{_mean_score(table, standing)} {table.metrics[standing.task]}"
    return f"{label} is highest, {reached}, {_short_verdict(standing)}."


def _short_verdict(standing: Standing) -> str:
    others = len(standing.order) - 1
    any_other = "any other" if others > 1 else "the other"
    every_other = "every other" if others > 1 else "the other"
    if standing.verdict is Verdict.ONE_SEED:
        return "but the next has fewer than two seeds in common with it, so nothing is tested"
    if standing.verdict is Verdict.NOT_SIGNIFICANT:
        return f"but not significantly above {any_other}"
    if standing.verdict is Verdict.ABOVE_SOME:
        return f"and significantly above {len(standing.beaten)} of {others} others"
    return f"and significantly above {every_other}"


def sentence(table: Table, standing: Standing) -> str:
    """Return a task's result: the highest setting, its lead, and whether it is significant."""
    if not standing.order:
        return "no run has a score."
    best, task = standing.order[0], standing.task
    summary = table.summary(best, task)
    assert summary is not None
    reached = f"{_mean_score(table, standing)} {table.metrics[task]}"
    if summary.n > 1:
        reached += f" on average over {summary.n} seeds"
    if len(standing.order) == 1:
        size = table.parameters(best, task)
        return f"{table.label(best)} reaches {reached}, with {size:,.0f} adapter parameters."
    second = table.label(standing.order[1])
    if standing.tied:
        return f"{table.label(best)} and {second} score alike, {reached}."
    return f"{table.label(best)} is highest, {reached}, {_lead(standing, second)}."


def _mean_score(table: Table, standing: Standing) -> str:
    summary = table.summary(standing.order[0], standing.task)
    assert summary is not None
    return number(summary.mean)


def _lead(standing: Standing, second: str) -> str:
    """Return the lead over the second setting, with the numbers behind the verdict."""
    others = len(standing.order) - 1
    lead = standing.lead
    if lead is None:
        return f"but it has no seed in common with the next, {second}, so nothing is tested"
    by = f"{lead.difference:+.4f} over {second}"
    if standing.verdict is Verdict.ONE_SEED:
        return f"{by}; with one seed nothing is tested"
    evidence = f"{by}, 95 % interval {lead.low:+.4f} to {lead.high:+.4f}, p = {standing.p_holm:.3f}"
    if standing.verdict is Verdict.ABOVE_ALL:
        rest = "every other setting" if others > 1 else "the other"
        return f"and significantly above {rest} ({evidence})"
    if standing.verdict is Verdict.ABOVE_SOME:
        beaten = len(standing.beaten)
        return f"significantly above {beaten} of {others} others (next: {evidence})"
    rest = "any other" if others > 1 else "the other"
    return f"but not significantly above {rest} ({evidence})"


def without_mean(table: Table, task: str) -> str:
    """Return a sentence that names the settings with an undefined score; empty if there is none.

    Such settings have no mean, so they are not ranked.
    """
    names = []
    for setting in table.settings:
        summary = table.summary(setting, task)
        if summary is not None and summary.undefined:
            seeds = f"{summary.undefined} of {summary.n} seeds"
            names.append(f"{table.label(setting)} ({seeds})")
    if not names:
        return ""
    return f"Not ranked, because seeds have no score: {', '.join(names)}."


def highest_alone(means: dict[Setting, float]) -> Setting | None:
    """Return the setting whose mean is printed as the single highest; None where rows are alike."""
    defined = {setting: mean for setting, mean in means.items() if not math.isnan(mean)}
    if len(defined) < 2:
        return None
    top = max(defined, key=lambda setting: defined[setting])
    alike = [mean for mean in defined.values() if number(mean) == number(defined[top])]
    return top if len(alike) == 1 else None


def number(value: float) -> str:
    """Return a score with the digits of its scale: 0.8412, 84.12; a dash for NaN."""
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
