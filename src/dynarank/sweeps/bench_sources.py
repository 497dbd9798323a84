"""The ranks that a cell of the bench is given: those that another arm's cell found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dynarank.config.command_line import quote
from dynarank.errors import UserError
from dynarank.run_folder import RANKS
from dynarank.sweeps.bench import ARMS, Cell, read_cells
from dynarank.sweeps.bench_tuning import source_of

NAMES = "matrices.txt"
"""The file beside the csv with the names of the matrices that the cells' ranks are of."""


def given_ranks(file: Path, cell: Cell, folder: Path) -> str:
    """Write the ranks that a cell is given into a folder of a folder, and return it; "" for none.

    Raises:
        UserError: the file of the matrices' names is not there.
    """
    if ARMS[cell.arm].ranks_of is None:
        return ""
    source = source_of(read_cells(file), cell)
    assert source is not None, "such a cell is planned once its source is there"
    names = file.with_name(NAMES)
    if not names.is_file():
        raise UserError(
            f"{names}: is not there, and without the names of the matrices nobody can be given "
            "ranks. Run any cell with ranks, which writes them"
        )
    ranks = dict(zip(names.read_text().split(), map(int, source.ranks.split()), strict=True))
    given = folder / "given"
    given.mkdir()
    (given / RANKS).write_text(json.dumps(ranks))
    return quote(str(given))


def write_names(file: Path, names: Sequence[str]) -> None:
    """Write the matrices' names, in the order of the cells' ranks, beside the csv, once."""
    # All cells adapt the same model, so that one list of names serves them all.
    path = file.with_name(NAMES)
    if names and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names))
