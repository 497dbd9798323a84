"""What a bench of methods says: its answer in a sentence, and the tables behind it.

Differences are paired: an arm's score less the baseline's of the same task, budget and seed, each
arm at its own tuned rate. Holm's correction runs over all arms and budgets that are compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from dynarank.errors import UserError
from dynarank.report.bench_overview import over_budgets, overviews
from dynarank.report.bench_pairs import ALPHA, LEAST_PAIRS, compared, differences
from dynarank.report.bench_questions import (
    history_section,
    orthogonal_section,
    paper_section,
    parts_section,
    scale_section,
    scores_section,
)
from dynarank.report.bench_ranks import ranks_section
from dynarank.report.bench_recipe import claim, claim_grid, one_rate_section, recipe_section
from dynarank.report.bench_sections import (
    Grid,
    Section,
    difference_grid,
    listed,
    numbered,
)
from dynarank.report.bench_spread import spread_section
from dynarank.sweeps.bench import Cell
from dynarank.sweeps.bench_tuning import best_rate

BEGIN, BEGIN_SHORT, END = (
    "<!-- bench: begin -->",
    "<!-- bench: overview -->",
    "<!-- bench: end -->",
)
"""Between a first and the last of these lines of a page stand the tables, and nothing else: all of
them, or the overview alone."""
NOT_IN_SHORT = (
    "random",
    "random_alpha_8",
    "dynarank_alpha_8",
    "paper_from_two",
    "lora_feed_forward",
)
"""Arms that the overview leaves out: controls, an earlier recipe, what the claim has, and a
placement that is worse than the other."""


def answer(cells: Sequence[Cell]) -> str:
    """Return what is shown of the recipe, and of all methods; or that it is open."""
    judged = [one for one in differences(cells) if one.judged]
    if not judged:
        return (
            "Not yet answered: no method has been compared with evenly placed LoRA on as many as "
            f"{LEAST_PAIRS} pairs of task and seed."
        )
    better, worse = [], []
    tasks: set[str] = set()
    for one in judged:
        tasks.update(one.tasks)
        where = f"`{one.arm}` at {one.budget:g}"
        if one.verdict > 0:
            better.append(where)
        elif one.verdict < 0:
            worse.append(where)
    overall = (
        f"Of all {numbered(len(judged), 'comparison')} with evenly placed LoRA, each method at its "
        f"tuned rate on up to {numbered(len(tasks), 'task')}, better: {listed(better) or 'none'}; "
        f"worse: {listed(worse) or 'none'} (p < {ALPHA} after Holm over all of them)."
    )
    return f"{claim(cells)} {overall}".strip()


def sections(cells: Sequence[Cell]) -> list[Section]:
    """Return the questions and their answers, and last what was run."""
    return [
        Section(
            "Against evenly placed LoRA",
            answer(cells),
            [over_budgets(cells), *overviews(cells), difference_grid(differences(cells))],
        ),
        recipe_section(cells),
        spread_section(cells),
        scores_section(cells),
        history_section(cells),
        paper_section(cells),
        ranks_section(cells),
        scale_section(cells),
        orthogonal_section(cells),
        parts_section(cells),
        one_rate_section(cells),
        Section("What was run", _cost(cells), [_means(cells)]),
    ]


def tables(cells: Sequence[Cell]) -> str:
    """Return the answer and all sections as markdown; the answer stands first, and once."""
    first, *others = sections(cells)
    parts = [first.answer]
    for grid in first.grids:
        if grid.rows:
            parts += ["", *grid.markdown()]
    for section in others:
        parts += ["", *section.markdown()]
    return "\n".join(parts)


def _means(cells: Sequence[Cell]) -> Grid:
    headings = (
        "budget",
        "task",
        "method",
        "rate",
        "seeds",
        "mean score",
        "mean loss",
        "parameters",
    )
    groups: dict[tuple[float, str, str], list[Cell]] = {}
    for cell in cells:  # what was tuned and has not been compared yet has a row, too
        groups.setdefault((cell.budget, cell.task, cell.arm), [])
    for cell in compared(cells, untuned=True):
        groups[cell.budget, cell.task, cell.arm].append(cell)
    rows = []
    for (budget, task, arm), group in groups.items():
        rate = best_rate(cells, arm, task, budget)
        shown = f"{rate:g}" if rate is not None else "none"
        rows.append([f"{budget:g}", task, arm, shown, str(len(group)), *_figures(group)])
    return Grid(headings, rows)


def _figures(group: Sequence[Cell]) -> list[str]:
    """Return the mean score, the mean loss and the parameters of runs; nothing of no runs."""
    if not group:
        return ["", "", ""]
    sizes = sorted({cell.parameters for cell in group})
    return [
        f"{fmean(cell.score for cell in group):.4f}",
        f"{fmean(cell.loss for cell in group):.4f}",
        f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}",
    ]


def _cost(cells: Sequence[Cell]) -> str:
    seconds = sum(cell.seconds for cell in cells)
    failed = sum(math.isnan(cell.score) for cell in cells)
    return (
        f"{len(cells)} cells, {failed} of them failed, {seconds / 3600:.1f} hours by the clock of "
        "one thread, on cores that other work shared."
    )


def update_page(page: Path, cells: Sequence[Cell]) -> None:
    """Write the tables, or the overview, between the page's two marks.

    Raises:
        UserError: the page lacks them.
    """
    text = page.read_text(encoding="utf-8")
    first, content = BEGIN, tables
    if BEGIN_SHORT in text:
        first, content = BEGIN_SHORT, overview_text
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{page}: has no lines {BEGIN} and {END} to write the tables between")
    page.write_text(f"{before}{first}\n\n{content(cells)}\n\n{END}{after}", encoding="utf-8")


def overview_text(cells: Sequence[Cell]) -> str:
    """Return the recipe's claim and the overview of all budgets, two tables, as markdown."""
    budgets = over_budgets(cells, without=NOT_IN_SHORT)
    return "\n".join([*claim_grid(cells).markdown(), "", *budgets.markdown()])
