"""The rank map: layers x matrices, how many components each kept (Figure 2 of the paper)."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dynarank.durable_files import write_bytes
from dynarank.run_folder import RANK_MAP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


RANK_MAP_FORMATS: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}
"""The files of a rank map: rank_map.png to look at, the others for papers. Beside each stands
what matplotlib would write into it and is left out, because it changes from day to day."""
RANK_MAP_FILES = [Path(RANK_MAP).with_suffix(f".{form}").name for form in RANK_MAP_FORMATS]
"""Names of the rank map's files, one in each format."""
PNG_DPI = 150
MOST_LAYERS = 1_000
"""A number from here on in a module's name is no layer, so it makes no column."""


class Place(NamedTuple):
    """Where an adapted matrix stands in its model."""

    stack: str
    """What repeats: 'bert.encoder.layer', 'model.decoder.layers'."""
    layer: int
    matrix: str
    """Its name inside the layer: 'attention.self.query'."""


Grid = tuple[list[str], np.ndarray]
"""A stack's matrices, and ranks (matrices, layers); NaN where a layer has no such matrix."""


def place(name: str) -> Place:
    """Return a module's place, which its full name's first number tells.

    A module outside any layer stands in layer 0 of the stack ''.
    """
    # Reports read names from files, so a name may hold line breaks or a number of any length.
    match = re.match(r"(.*?)\.(\d{1,4})\.(.*)", name, flags=re.DOTALL)
    if match is None or int(match[2]) >= MOST_LAYERS:
        return Place(stack="", layer=0, matrix=name)
    return Place(stack=match[1], layer=int(match[2]), matrix=match[3])


def rank_map_title(
    model: str,
    task: str,
    method: str,
    seed: int,
    budget: float | None = None,
    metric: str | None = None,
    score: float | None = None,
) -> str:
    """Return the title of a run's rank map: model, task, method, budget, seed and score."""
    parts = [model, task, method]
    if budget is not None:
        parts.append(f"budget {budget}")
    parts.append(f"seed {seed}")
    if score is not None:
        # Accuracies and correlations end at 1. ROUGE and SQuAD's scores are percentages.
        digits = 4 if abs(score) < 10 else 2
        parts.append(f"{metric or 'score'} {score:.{digits}f}")
    return ", ".join(parts)


def save_rank_map(
    folder: Path, ranks: Mapping[str, int], largest: int, title: str = ""
) -> list[Path]:
    """Write a run's rank map durably, in each of `RANK_MAP_FORMATS`; return the paths.

    The bytes depend on the arguments alone: no date is written.

    Args:
        folder: the run's.
        ranks: the kept rank by module name.
        largest: where the colour scale ends.
        title: what stands above the number of components.

    Raises:
        ValueError: there are no ranks.
    """
    import matplotlib

    paths = []
    # Without a salt, the SVG's ids are random. Texts stay texts: 42 embeds TrueType fonts in a PDF.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "", "pdf.fonttype": 42}):
        figure = draw_rank_map(ranks, largest, title)
        for form in RANK_MAP_FORMATS:
            path = (folder / RANK_MAP).with_suffix(f".{form}")
            write_bytes(path, _render(figure, form))
            figure.set_layout_engine("none")  # the first file's layout is the others', too
            paths.append(path)
    return paths


def _render(figure: Figure, form: str) -> bytes:
    """Return a figure as a file of one of `RANK_MAP_FORMATS`.

    The canvases are asked directly: `savefig` draws a figure twice, for its layout.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    figure.dpi = PNG_DPI  # a canvas takes the figure's own, and may leave another
    content = io.BytesIO()
    metadata = RANK_MAP_FORMATS[form]
    if form == "png":
        FigureCanvasAgg(figure).print_png(content, metadata=metadata)
    elif form == "svg":
        FigureCanvasSVG(figure).print_svg(content, metadata=metadata)
    else:
        FigureCanvasPdf(figure).print_pdf(content, metadata=metadata)
    return content.getvalue()


def draw_rank_map(ranks: Mapping[str, int], largest: int, title: str = "") -> Figure:
    """Draw a panel for each stack: a row a matrix, a column a layer, the kept rank in each cell.

    Args:
        ranks: the kept rank by module name.
        largest: where the colour scale ends.
        title: what stands above the number of components.

    Raises:
        ValueError: there are no ranks.
    """
    # Not pyplot, which keeps every figure alive and looks for a screen.
    from matplotlib.figure import Figure

    if not ranks:
        raise ValueError("no ranks to draw: the method has none")
    stacks, grids = _stack_grids(ranks)
    heights = [len(matrices) for matrices, _ in grids]
    columns = max(values.shape[1] for _, values in grids)
    # 0.5 a layer and 0.42 a matrix; the rest is for names, colour bar and titles.
    width = max(6.0, 3.2 + 0.5 * columns)  # inches
    height = 1.5 + 0.42 * sum(heights) + 0.7 * (len(stacks) - 1)
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(len(stacks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, stack, (matrices, values) in zip(panels, stacks, grids, strict=True):
        image = _panel(axes, matrices, values, largest)
        if len(stacks) > 1:
            axes.set_title(stack, fontsize=9, loc="left")
    panels[-1].set_xlabel("layer")
    # All panels have one scale, so the last one's image explains all.
    figure.colorbar(image, ax=list(panels), label="components kept", ticks=_whole_ticks(largest))
    total = sum(ranks.values())
    caption = f"{total} components in {len(ranks)} matrices"
    # A dollar sign in a name would begin a formula.
    figure.suptitle(f"{title}\n{caption}" if title else caption, fontsize=10, parse_math=False)
    return figure


def _stack_grids(ranks: Mapping[str, int]) -> tuple[list[str], list[Grid]]:
    """Return the stacks' names in model order, and the grid of each."""
    by_stack: dict[str, dict[Place, int]] = {}
    for name, rank in ranks.items():
        where = place(name)
        by_stack.setdefault(where.stack, {})[where] = rank
    return list(by_stack), [_grid(places) for places in by_stack.values()]


def _grid(places: Mapping[Place, int]) -> Grid:
    """Return the grid of one stack's matrices."""
    matrices = list(dict.fromkeys(where.matrix for where in places))
    layers = 1 + max(where.layer for where in places)
    values = np.full((len(matrices), layers), np.nan)
    for where, rank in places.items():
        values[matrices.index(where.matrix), where.layer] = rank
    return matrices, values


def rank_grid(ranks: Mapping[str, int]) -> tuple[list[str], np.ndarray]:
    """Return all stacks above each other.

    Returns:
        the matrices' names, each after its stack's where there are several; and the ranks,
        (matrices, layers), NaN where a layer has no such matrix.
    """
    stacks, grids = _stack_grids(ranks)
    columns = max(values.shape[1] for _, values in grids)
    names: list[str] = []
    rows = []
    for stack_name, (matrices, values) in zip(_short_names(stacks), grids, strict=True):
        names += [f"{stack_name} {matrix}".strip() for matrix in matrices]
        missing = columns - values.shape[1]
        rows.append(np.pad(values, ((0, 0), (0, missing)), constant_values=np.nan))
    return names, np.concatenate(rows)


def _short_names(stacks: list[str]) -> list[str]:
    """Return stacks' names without the parts that all of them have."""
    # "model.encoder.layers" and "model.decoder.layers" become "encoder" and "decoder".
    common = set(stacks[0].split("."))
    for stack in stacks:
        common &= set(stack.split("."))
    names = []
    for stack in stacks:
        names.append(".".join(part for part in stack.split(".") if part not in common))
    return names


def _panel(axes: Axes, matrices: list[str], values: np.ndarray, largest: int) -> AxesImage:
    """Draw one stack, and return the image that the colour bar explains."""
    image = axes.imshow(values, vmin=0, vmax=largest, cmap="cividis", aspect="auto")
    axes.set_yticks(range(len(matrices)), matrices, fontsize=8)
    layers = range(values.shape[1])
    axes.set_xticks(layers, [str(layer) for layer in layers], fontsize=8)
    for (row, column), rank in np.ndenumerate(values):
        if not np.isnan(rank):
            colour = "black" if rank > 0.6 * largest else "white"  # cividis is bright from there on
            axes.text(
                column, row, f"{rank:.0f}", ha="center", va="center", fontsize=8, color=colour
            )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image


def _whole_ticks(largest: int) -> list[int]:
    """Return about six whole numbers from 0 to `largest`."""
    step = max(1, largest // 6)
    return list(range(0, largest + 1, step))
