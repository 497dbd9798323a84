"""The rank map: layers x matrices, how many components each kept (Figure 2 of the paper)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


class Place(NamedTuple):
    """Where an adapted matrix stands in its model."""

    stack: str
    """What repeats: 'bert.encoder.layer', 'model.decoder.layers'."""
    layer: int
    matrix: str
    """Its name inside the layer: 'attention.self.query'."""


def place(name: str) -> Place:
    """A module's place, from its full name's first number; a module outside any layer has layer 0 of stack ''."""
    match = re.match(r"(.*?)\.(\d+)\.(.*)", name)
    return Place(match[1], int(match[2]), match[3]) if match else Place("", 0, name)


def draw_rank_map(ranks: Mapping[str, int], largest: int, title: str = "") -> Figure:
    """A panel a stack, a row a matrix, a column a layer, the kept rank in each cell. `largest` ends the colour scale.

    Raises:
        ValueError: no ranks.
    """
    from matplotlib.figure import Figure

    if not ranks:
        raise ValueError("no ranks to draw: the method has none")
    places = {place(name): rank for name, rank in ranks.items()}
    stacks = list(dict.fromkeys(spot.stack for spot in places))
    grids = [_grid(places, stack) for stack in stacks]
    heights = [len(matrices) for matrices, _ in grids]
    columns = max(values.shape[1] for _, values in grids)
    figure = Figure(
        figsize=(3.2 + 0.5 * columns, 1.3 + 0.42 * sum(heights) + 0.7 * (len(stacks) - 1)),
        layout="constrained",
    )
    panels = figure.subplots(len(stacks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, stack, (matrices, values) in zip(panels, stacks, grids, strict=True):
        image = _panel(axes, matrices, values, largest)
        if len(stacks) > 1:
            axes.set_title(stack, fontsize=9, loc="left")
    panels[-1].set_xlabel("layer")
    figure.colorbar(image, ax=list(panels), label="components kept", ticks=_whole_ticks(largest))
    total = sum(ranks.values())
    figure.suptitle(
        f"{title}: {total} components in {len(ranks)} matrices".lstrip(": "), fontsize=10
    )
    return figure


def _grid(places: Mapping[Place, int], stack: str) -> tuple[list[str], np.ndarray]:
    """The stack's matrix names, and ranks (matrices, layers); NaN where a layer has no such matrix."""
    mine = {spot: rank for spot, rank in places.items() if spot.stack == stack}
    matrices = list(dict.fromkeys(spot.matrix for spot in mine))
    values = np.full((len(matrices), 1 + max(spot.layer for spot in mine)), np.nan)
    for spot, rank in mine.items():
        values[matrices.index(spot.matrix), spot.layer] = rank
    return matrices, values


def rank_grid(ranks: Mapping[str, int]) -> tuple[list[str], np.ndarray]:
    """All stacks above each other: matrix names, after their stack's if there are several, and ranks (matrices, layers)."""
    places = {place(name): rank for name, rank in ranks.items()}
    stacks = list(dict.fromkeys(spot.stack for spot in places))
    grids = [_grid(places, stack) for stack in stacks]
    columns = max(values.shape[1] for _, values in grids)
    wide = [
        np.pad(values, ((0, 0), (0, columns - values.shape[1])), constant_values=np.nan)
        for _, values in grids
    ]
    common = set.intersection(*(set(stack.split(".")) for stack in stacks))
    own = [".".join(part for part in stack.split(".") if part not in common) for stack in stacks]
    names = [
        f"{stack} {matrix}".strip()
        for stack, (matrices, _) in zip(own, grids, strict=True)
        for matrix in matrices
    ]
    return names, np.concatenate(wide)


def _panel(axes: Axes, matrices: list[str], values: np.ndarray, largest: int) -> AxesImage:
    image = axes.imshow(values, vmin=0, vmax=largest, cmap="cividis", aspect="auto")
    axes.set_yticks(range(len(matrices)), matrices, fontsize=8)
    axes.set_xticks(
        range(values.shape[1]), [str(layer) for layer in range(values.shape[1])], fontsize=8
    )
    for (row, column), rank in np.ndenumerate(values):
        if not np.isnan(rank):
            colour = "black" if rank > 0.6 * largest else "white"
            axes.text(
                column, row, f"{rank:.0f}", ha="center", va="center", fontsize=8, color=colour
            )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image


def _whole_ticks(largest: int) -> list[int]:
    step = max(1, largest // 6)
    return list(range(0, largest + 1, step))
