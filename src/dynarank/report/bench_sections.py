"""A section of a bench's report: a question, its answer in a sentence, and tables.

Sections are data, so that a markdown page and an HTML page say the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from dynarank.report.bench_pairs import Difference


@dataclass(frozen=True)
class Grid:
    """A table: a heading for each column, and rows of as many words."""

    headings: tuple[str, ...]
    rows: list[list[str]]

    def markdown(self) -> list[str]:
        """Return the table's lines."""
        lines = [_row(self.headings), _row(["---"] * len(self.headings))]
        return [*lines, *[_row(row) for row in self.rows]]


@dataclass(frozen=True)
class Section:
    """A question and what the file says to it."""

    title: str
    answer: str
    """Its first sentence is the answer, or says that the data do not carry one."""
    grids: list[Grid] = field(default_factory=list)

    def markdown(self) -> list[str]:
        """Return the section's lines."""
        lines = [f"### {self.title}", "", self.answer]
        for grid in self.grids:
            if grid.rows:
                lines += ["", *grid.markdown()]
        return lines


def numbered(count: float, thing: str) -> str:
    """Return a number of things in words: 1 method, 0.25 methods, 2 methods."""
    return f"{count:g} {thing}" if count == 1 else f"{count:g} {thing}s"


def a_matrix(budget: float) -> str:
    """Return a budget in words."""
    return f"{numbered(budget, 'component')} a matrix"


DIFFERENCE_HEADINGS = (
    "method",
    "less",
    "tasks",
    "pairs",
    "won",
    "score",
    "95 %, pairs",
    "95 %, tasks",
    "effect",
    "95 %, effect",
    "p, Holm",
    "p, ranks",
    "p, tasks",
    "loss",
)


def difference_grid(differences: Sequence[Difference], runs: str = "") -> Grid:
    """Return a table of differences, a row each.

    Args:
        differences: of the table.
        runs: which runs they are of, where that must be said; it stands in the first heading.
    """
    rows = []
    for one in differences:
        scores = one.scores
        row = [
            ", ".join(f"{budget:g}" for budget in one.budgets),
            one.arm,
            one.against,
            str(len(one.tasks)),
            str(scores.n),
            str(one.won),
            signed(scores.difference),
            interval(scores.low, scores.high),
            interval(one.task_low, one.task_high),
            signed(one.effect, 2),
            interval(one.effect_low, one.effect_high, 2),
            small(one.adjusted),
            small(one.rank_p),
            small(one.task_p),
            signed(one.losses.difference),
        ]
        rows.append(row)
    first = f"budget, {runs}" if runs else "budget"
    return Grid((first, *DIFFERENCE_HEADINGS), rows)


def signed(value: float, places: int = 4) -> str:
    """Return a number with its sign; nothing for NaN."""
    return "" if math.isnan(value) else f"{value:+.{places}f}"


def plain(value: float, places: int = 3) -> str:
    """Return a number; nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.{places}f}"


def small(p: float) -> str:
    """Return a probability; nothing for NaN."""
    return "< 0.001" if p < 0.001 else plain(p)


def interval(low: float, high: float, places: int = 4) -> str:
    """Return an interval's ends; nothing where it has none."""
    return "" if math.isnan(low) else f"{low:+.{places}f} to {high:+.{places}f}"


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _row(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"
