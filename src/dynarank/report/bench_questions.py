"""The questions of a bench that differences answer: score, ranks or history, the paper, scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from dynarank.report.bench_pairs import Difference, compared, paired_differences
from dynarank.report.bench_sections import Grid, Section, a_matrix, difference_grid, listed
from dynarank.sweeps.bench import BASELINE, Cell

CONTROLS = (BASELINE, "random", "random_alpha_8", "shuffled", "replayed")
"""What a score or a start must beat: uniform ranks, random scores, the ranks that it found in
other places, and those ranks from the first step on."""
SECOND_QUESTION = (BASELINE, "random_alpha_8", "shuffled")
THIRD_QUESTION = (
    ("dynarank_alpha_8", "replayed"),
    ("dynarank_alpha_8", "frozen_early"),
    ("dynarank_alpha_8", "frozen_late"),
    ("dynarank_alpha_8", "compressed"),
    ("dynarank_alpha_8", "global_svd"),
    ("global_svd", "compressed"),
)
"""Pruned in training against the ranks alone; more and less training after the last pruning;
pruning and cutting in training against cutting a larger LoRA after it."""
FOURTH_QUESTION = (
    ("paper", BASELINE),
    ("paper_from_two", BASELINE),
    ("adalora", BASELINE),
    ("paper", "adalora"),
    ("paper_from_two", "paper"),
    ("paper_from_two", "adalora"),
    ("dynarank", "paper"),
    ("dynarank", "paper_from_two"),
    ("dynarank", "adalora"),
)
SCALE_QUESTION = (
    ("lora_even_alpha_1", BASELINE),
    ("dynarank_alpha_1", "dynarank_alpha_8"),
    ("dynarank_alpha_1_power_0", "dynarank_alpha_1"),
    ("dynarank_alpha_1", "lora_even_alpha_1"),
    ("lora_last_layers_alpha_1", "lora_even_alpha_1"),
    ("dynarank_alpha_1", "lora_last_layers_alpha_1"),
    ("adalora", "lora_even_alpha_1"),
    ("dynarank_alpha_1", "adalora"),
)
"""Small components at a higher rate against large ones; then methods that both have small ones."""
ORTHOGONAL_QUESTION = (
    ("dynarank_orthogonal", BASELINE),
    ("dynarank_orthogonal", "lora_even_alpha_1"),
    ("dynarank_orthogonal", "lora_last_layers"),
    ("dynarank_orthogonal", "adalora"),
    ("dynarank_orthogonal", "dynarank_alpha_8"),
    ("dynarank_orthogonal", "random_orthogonal"),
    ("dynarank_orthogonal", "even_orthogonal"),
    ("even_orthogonal", BASELINE),
    ("even_orthogonal", "adalora"),
)
"""Components whose size is in c alone, against others; then their ranks against chance, and
against none pruned."""
RECIPE_QUESTION = (
    ("dynarank", "lora_even_alpha_1"),
    ("dynarank", "lora_last_layers_alpha_1"),
    ("dynarank", "adalora"),
    ("dynarank", "paper_from_two"),
    ("dynarank", "dynarank_alpha_8"),
    ("dynarank", "dynarank_alpha_1"),
    ("dynarank", "dynarank_orthogonal"),
    ("dynarank", "random"),
)
"""The recipe, with A's directions at length one and B free, against all that came before it, and
against chance."""
KINDS = ("query", "key", "value", "attention output", "feed-forward in", "feed-forward out")
"""The adapted matrices of one layer of an encoder, in model order."""


def scored_arms(cells: Sequence[Cell]) -> list[str]:
    """Return the arms that place components by what they learn of the data."""
    arms = dict.fromkeys(cell.arm for cell in compared(cells))
    fixed = ("lora_", "frozen_", *CONTROLS)
    return [arm for arm in arms if not arm.startswith(fixed)]


def scores_section(cells: Sequence[Cell]) -> Section:
    """Answer which score or start beats the controls."""
    title = "2. Which score or start beats random, shuffled and uniform?"
    wanted = list(product(scored_arms(cells), SECOND_QUESTION))
    ran = {cell.arm for cell in compared(cells)}
    missing = [arm for arm in SECOND_QUESTION if arm not in ran]
    found = paired_differences(cells, wanted)
    section = _section(title, found)
    text = section.answer
    if missing and found:
        text += f" Not run: {listed(missing)}."
    grids = [*section.grids, _places(cells)]
    return Section(title, text, grids)


def history_section(cells: Sequence[Cell]) -> Section:
    """Answer whether the ranks or the history matter, and when to cut."""
    title = "3. The ranks or the history? In training or after it?"
    return _section(title, paired_differences(cells, THIRD_QUESTION))


def paper_section(cells: Sequence[Cell]) -> Section:
    """Answer how the published methods compare, at this scale."""
    title = "4. The paper's method and AdaLoRA, each at its own rate"
    return _section(title, paired_differences(cells, FOURTH_QUESTION))


def scale_section(cells: Sequence[Cell]) -> Section:
    """Answer whether the size of a component decides what placement was thought to decide."""
    title = "6. Smaller components at a higher rate"
    return _section(title, paired_differences(cells, SCALE_QUESTION))


def orthogonal_section(cells: Sequence[Cell]) -> Section:
    """Answer what orthogonal components are worth, by the length of training, which decides it."""
    runs = _by_length(cells)
    return _split_section("7. Orthogonal components", runs, ORTHOGONAL_QUESTION)


def parts_section(cells: Sequence[Cell]) -> Section:
    """Answer what the recipe's parts are worth, in all and by the length of training."""
    runs = {"All tasks": cells, **_by_length(cells)}
    return _split_section("8. The recipe and what came before it", runs, RECIPE_QUESTION)


def _by_length(cells: Sequence[Cell]) -> dict[str, Sequence[Cell]]:
    """Part the cells by how long they train."""
    # A task of another scale than the small one is named so, as `stsb:longer`.
    return {
        "Longer training": [cell for cell in cells if ":" in cell.task],
        "One short epoch": [cell for cell in cells if ":" not in cell.task],
    }


def _split_section(
    title: str, parts: Mapping[str, Sequence[Cell]], pairs: Sequence[tuple[str, str]]
) -> Section:
    """Answer a question about each part of the cells, by the part's name."""
    answers = []
    grids = []
    for words, of_part in parts.items():
        section = _section(title, paired_differences(of_part, pairs), runs=words.lower())
        answers.append(f"{words}: {section.answer}")
        grids += section.grids
    return Section(title, " ".join(answers), grids)


def _section(title: str, found: Sequence[Difference], runs: str = "") -> Section:
    if not any(one.judged for one in found):
        text = "The data carry no answer: no two of these methods share six pairs of task and seed."
        return Section(title, text, [difference_grid(found, runs)])
    sentences = []
    for budget in sorted({one.budget for one in found}):
        sentences.append(_sentence(budget, [one for one in found if one.budget == budget]))
    return Section(title, " ".join(sentences), [difference_grid(found, runs)])


def _sentence(budget: float, found: Sequence[Difference]) -> str:
    """Say what the judged differences under a budget show, each once."""
    parts = []
    for verdict, words in ((1, "better than"), (-1, "worse than"), (0, "not shown to differ from")):
        by_arm: dict[str, list[str]] = {}
        for one in found:
            if one.judged and one.verdict == verdict:
                by_arm.setdefault(one.arm, []).append(one.against)
        for arm, against in by_arm.items():
            others = [f"`{other}`" for other in against]
            parts.append(f"`{arm}` is {words} {listed(others)}")
    unjudged = sum(not one.judged for one in found)
    if unjudged:
        verb = "pair has" if unjudged == 1 else "pairs have"
        parts.append(f"{unjudged} {verb} too few runs to judge")
    return f"At {a_matrix(budget)}, {'; '.join(parts)}."


def _places(cells: Sequence[Cell]) -> Grid:
    """Return where the components went, by kind of matrix, and how many lie in the upper half."""
    groups: dict[tuple[float, str], list[list[int]]] = {}
    for cell in compared(cells):
        ranks = [int(word) for word in cell.ranks.split()]
        # Other numbers of matrices are no whole layers of an encoder. LoRA's places were given.
        if ranks and len(ranks) % len(KINDS) == 0 and not cell.arm.startswith("lora_"):
            groups.setdefault((cell.budget, cell.arm), []).append(ranks)
    rows = []
    for (budget, arm), ranks_of_runs in sorted(groups.items()):
        by_matrix = [sum(column) for column in zip(*ranks_of_runs, strict=True)]
        total = max(1, sum(by_matrix))
        shares = []
        for kind in range(len(KINDS)):
            of_kind = by_matrix[kind :: len(KINDS)]  # that matrix of every layer
            shares.append(sum(of_kind) / total)
        layers = len(by_matrix) // len(KINDS)
        # Matrices come layer by layer, so that the upper half of the layers is the end of the list.
        first_of_upper = (layers // 2) * len(KINDS)
        shares.append(sum(by_matrix[first_of_upper:]) / total)
        percents = [f"{100 * share:.0f}" for share in shares]
        rows.append([f"{budget:g}", arm, str(len(ranks_of_runs)), *percents])
    headings = ("budget", "method", "runs", *(f"{kind}, %" for kind in KINDS), "upper half, %")
    return Grid(headings, rows)
