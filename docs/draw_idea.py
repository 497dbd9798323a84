"""Draw docs/images/idea.svg, the method in four pictures.

`python docs/draw_idea.py` writes it again. It is plain SVG text, so that it needs no library and
looks the same on every machine. Its words and frames follow the reader's light or dark page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

TARGET = Path(__file__).with_name("images") / "idea.svg"
SCORES = (
    (0.9, 0.7, 0.5, 0.2, 0.15, 0.1),
    (0.95, 0.85, 0.8, 0.6, 0.55, 0.4),
    (0.3, 0.25, 0.2, 0.1, 0.1, 0.05),
    (0.8, 0.75, 0.35, 0.3, 0.12, 0.08),
)
"""Of six components in each of four matrices."""
BUDGET = 12
"""Components that the whole model keeps: three a matrix on average."""
CELL, GAP = 22, 4
PANEL, SPACE, TOP = 6 * (CELL + GAP) - GAP, 46, 58
TITLES = (
    ("1. Start wide", "6 components a matrix"),
    ("2. Score", "its share of the update"),
    ("3. Prune", "the weakest of the model"),
    ("4. Freeze", "3 a matrix on average"),
)
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f; }
  .quiet { font-size: 11px; fill: #57606a; }
  .title { font-weight: 600; font-size: 15px; }
  .frame { fill: none; stroke: #8c959f; stroke-width: 1.2; }
  .gone { fill: none; stroke: #8c959f; stroke-dasharray: 3 3; }
  .full { fill: #0072b2; }
  .arrow { stroke: #8c959f; stroke-width: 1.6; fill: none; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .quiet { fill: #9da7b3; } .full { fill: #56b4e9; }
  }
"""


def kept() -> set[tuple[int, int]]:
    """Return matrix and number of the components with the highest scores of the whole model."""
    scored = []
    for matrix, scores in enumerate(SCORES):
        for number, score in enumerate(scores):
            scored.append((-score, matrix, number))
    return {(matrix, number) for _, matrix, number in sorted(scored)[:BUDGET]}


def cell(x: int, y: int, kind: str, opacity: float = 1.0) -> str:
    """Return a component's square."""
    return (
        f'<rect class="{kind}" x="{x}" y="{y}" width="{CELL}" height="{CELL}" rx="4" '
        f'opacity="{opacity:.2f}"/>'
    )


def squares(panel: int, left: int) -> list[str]:
    """Return the squares of a panel, a row a matrix."""
    survivors = kept()
    shapes = []
    for matrix, scores in enumerate(SCORES):
        place = 0
        for number, score in enumerate(scores):
            survives = (matrix, number) in survivors
            if panel == 3 and not survives:
                continue
            x, y = left + place * (CELL + GAP), TOP + matrix * (CELL + 14)
            if panel == 2 and not survives:
                shapes.append(cell(x, y, "gone"))
            else:
                shapes.append(cell(x, y, "full", 0.45 if panel == 0 else 0.2 + 0.8 * score))
            place += 1
        if panel == 3:
            y = TOP + matrix * (CELL + 14) + 15
            shapes.append(text(left + PANEL + 10, y, f"rank {place}", "quiet"))
    return shapes


def text(x: int, y: int, words: str, kind: str = "") -> str:
    """Return words at a place."""
    return f'<text x="{x}" y="{y}" class="{kind}">{words}</text>'


def picture() -> str:
    """Return the whole SVG."""
    left = 84
    width = left + 4 * PANEL + 3 * SPACE + 60
    height = TOP + 4 * (CELL + 14) + 26
    shapes: list[str] = []
    for matrix, name in enumerate(("query", "value", "output", "dense")):
        shapes.append(text(12, TOP + matrix * (CELL + 14) + 16, name))
    for panel, (title, meaning) in enumerate(TITLES):
        start = left + panel * (PANEL + SPACE)
        shapes.append(text(start, 22, title, "title"))
        shapes.append(text(start, 40, meaning, "quiet"))
        shapes.extend(squares(panel, start))
        if panel < len(TITLES) - 1:
            shapes.append(arrow(start + PANEL + 10, TOP + 2 * (CELL + 14) - 7))
    foot = (
        "A square is one rank-one component of a matrix's update. The fuller, the higher its score."
    )
    shapes.append(text(left, height - 8, foot, "quiet"))
    return _document(width, height, shapes)


def arrow(x: int, y: int) -> str:
    """Return an arrow to the right."""
    end = x + SPACE - 20
    return f'<path class="arrow" d="M{x} {y}H{end}M{end - 6} {y - 5}L{end} {y}L{end - 6} {y + 5}"/>'


def _document(width: int, height: int, shapes: Sequence[str]) -> str:
    lines = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'role="img" aria-label="Start wide, score, prune, freeze">\n'
        f"<style>{STYLE}</style>\n{lines}\n</svg>\n"
    )


if __name__ == "__main__":
    TARGET.write_text(picture(), encoding="utf-8")
