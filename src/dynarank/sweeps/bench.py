"""A bench of methods: a plan of cells, each a run, and a file that holds what is done.

A cell is one run of an arm (a method and its settings) on a task, under a budget, with a seed and
a rate. Every arm is tuned alike on seeds that no comparison uses (`bench_tuning`). Then the arms
run on the same seeds, each at its own best rate. What is in the file is not run again, so that the
bench may be stopped at any time.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from dynarank.allocation.config import BudgetConfig

TUNING_SEEDS = (100, 101)
"""Seeds that choose the rates, and that no comparison uses: the grid runs on the first."""
SEEDS = (1, 2, 3, 4, 5)
# The fine classes are not learned in one epoch (docs/science.md).
TASKS = ("sst2", "tweets", "products", "editorials", "questions", "fine_questions:longer")
BUDGETS = (0.25, 0.5, 1.0, 8.0)
MOST_EXTENSIONS = 4
"""Rates that a grid is carried on by, on either side."""
BASELINE = "lora_even"
FIRST_ARMS = ("lora_even", "lora_feed_forward", "dynarank", "random", "adalora")
COMMON = "experiment=does_it_pay"
"""What all cells share stands in that experiment, so that a cell can be run by hand."""
SCALES = {
    "small": (),  # as experiment=does_it_pay has it
    "longer": ("trainer.epochs=3", "budget.interval=15"),  # three times the steps, as many prunings
    "whole": (
        "task.max_train_rows=null",
        "task.max_validation_rows=null",
        "trainer.epochs=null",  # the task's own
        "budget.interval=100",
    ),
}
"""What a scale changes. Tasks of another scale than the small one are named so, as `cola:whole`,
and are tuned and paired among themselves."""


@dataclass(frozen=True)
class Arm:
    """A method with its settings, and the rates that its tuning begins with."""

    overrides: tuple[str, ...]
    lowest_rate: float
    rates: int = 3
    rate_of: str | None = None
    """The arm whose tuned rate it takes, so that the two differ in nothing but their ranks."""
    ranks_of: str | None = None
    """The arm whose ranks it is given, as found on the same task, budget and seed at that arm's
    tuned rate; `{ranks}` in the overrides is then a folder that holds them."""
    only_rate: float | None = None
    """The one rate that it has on every task and under every budget, in place of a tuned one."""

    def grid(self) -> list[float]:
        """Return the rates, each twice the last."""
        # Doubling and halving are exact, and a csv gives floats back as they were: so rates may be
        # compared by ==.
        return [self.lowest_rate * 2**step for step in range(self.rates)]


_NO_DROPOUT = "method.dropout=0"  # it is no setting of every method, so no experiment's file has it
_LORA = ("method=lora", "method.alpha=8", _NO_DROPOUT)
# Up to one component a matrix alpha is the scale itself. At an eighth of it a component bears a
# higher rate, at which its directions move faster while the model moves no further.
_LORA_ALPHA_1 = ("method=lora", "method.alpha=1", _NO_DROPOUT)
# The recipe's settings are written out: what its defaults are may change again.
_DYNARANK = ("method=dynarank", "method.alpha=1", _NO_DROPOUT)
# The directions of A alone, and the size in B, which learns from the first step.
_ORTHOGONAL_A = ("method.init=orthogonal_A", "method.orthogonality=0.1")
_START_OF_LORA = ("method.init=lora", "method.orthogonality=0")
_ALPHA_1 = (*_DYNARANK, *_START_OF_LORA)
_ALPHA_8 = ("method=dynarank", "method.alpha=8", _NO_DROPOUT, *_START_OF_LORA)
# As AdaLoRA's components, whose size is in c alone; c needs no smaller steps where there are more.
_ORTHOGONAL = ("method=dynarank_orthogonal", "method.alpha=8", _NO_DROPOUT)
_BY_CHANCE = ("method.score=random", "method.score_seed={seed}")
_GIVEN_RANKS = "method.rank_pattern_from={ranks}"
_SHUFFLED = ("method.score=shuffled", "method.score_seed={seed}", _GIVEN_RANKS)
# With null a component starts as large under any budget as in the paper's r8.
_PAPER = ("method=dora", "method.alpha=null", _NO_DROPOUT)
# As method=dynarank counts by itself, so that adapters of one budget are of one size.
_BY_PARAMETERS = ("budget.unit=parameters", _NO_DROPOUT)
_GLOBAL_SVD = ("method=global_svd", "method.alpha=8", *_BY_PARAMETERS)


def _placed(placement: str, *others: str) -> Arm:
    """Return LoRA on other matrices, at the rate of LoRA that is spread evenly."""
    overrides = (*_LORA, f"method.placement={placement}", *others)
    return Arm(overrides, 1e-3, rate_of=BASELINE)


def _frozen_after(final: float) -> Arm:
    """Return pruning with another share of the steps after the last one, at the same rate."""
    return Arm((*_ALPHA_8, f"budget.final={final}"), 1e-3, rate_of="dynarank_alpha_8")


ARMS = {
    "lora_even": Arm(_LORA, 1e-3),
    "lora_feed_forward": _placed("feed_forward"),
    "lora_query_value": _placed("query_value"),
    "lora_last_layers": _placed("last_layers"),
    "lora_first_layers": _placed("first_layers"),
    "lora_random": _placed("random", "method.placement_seed={seed}"),
    "lora_even_alpha_1": Arm(_LORA_ALPHA_1, 2e-3),
    "lora_last_layers_alpha_1": Arm(
        (*_LORA_ALPHA_1, "method.placement=last_layers"), 2e-3, rate_of="lora_even_alpha_1"
    ),
    "dynarank": Arm((*_DYNARANK, *_ORTHOGONAL_A), 5e-3),
    # On the tuning seeds, over all tasks at 0.25 and 0.5 together, 1e-2 has the best mean score
    # and 5e-3 the best mean loss.
    "dynarank_at_1e-2": Arm((*_DYNARANK, *_ORTHOGONAL_A), 5e-3, only_rate=1e-2),
    "dynarank_at_5e-3": Arm((*_DYNARANK, *_ORTHOGONAL_A), 5e-3, only_rate=5e-3),
    "random": Arm((*_DYNARANK, *_ORTHOGONAL_A, *_BY_CHANCE), 5e-3, rate_of="dynarank"),
    "dynarank_alpha_8": Arm(_ALPHA_8, 1e-3),
    "dynarank_alpha_1": Arm(_ALPHA_1, 2e-3),
    # method.rate_power calms large components, which these are not.
    "dynarank_alpha_1_power_0": Arm((*_ALPHA_1, "method.rate_power=0"), 2e-3),
    "dynarank_orthogonal": Arm(_ORTHOGONAL, 2.5e-3),
    # From one component on it starts at its budget, so that nothing is pruned.
    "even_orthogonal": Arm((*_ORTHOGONAL, "budget.init={whole}"), 2.5e-3),
    "random_alpha_8": Arm((*_ALPHA_8, *_BY_CHANCE), 1e-3),
    "random_orthogonal": Arm((*_ORTHOGONAL, *_BY_CHANCE), 2.5e-3, rate_of="dynarank_orthogonal"),
    "shuffled": Arm(
        (*_ALPHA_8, *_SHUFFLED), 1e-3, rate_of="dynarank_alpha_8", ranks_of="dynarank_alpha_8"
    ),
    "frozen_early": _frozen_after(0.75),
    "frozen_late": _frozen_after(0.1),
    "replayed": Arm((*_LORA, _GIVEN_RANKS), 1e-3, rate_of="lora_even", ranks_of="dynarank_alpha_8"),
    "absolute": Arm((*_ALPHA_8, "method.score=absolute"), 1e-3),
    "global_svd": Arm(_GLOBAL_SVD, 1e-3),
    "compressed": Arm((*_GLOBAL_SVD, "budget.final=0"), 1e-3),  # cut at the end, and not trained on
    "gora": Arm(("method=gora", "method.alpha=8", *_BY_PARAMETERS), 1e-3),
    "eva": Arm(("method=eva", "method.alpha=8", _NO_DROPOUT), 1e-3),  # whole components alone
    "sora": Arm(("method=sora", "method.alpha=8", *_BY_PARAMETERS), 1e-3),
    "adalora": Arm(("method=adalora", *_BY_PARAMETERS), 5e-3),
    "paper": Arm(_PAPER, 1.25e-2),
    # The only component of a layer has a share of one: from 1, Eq. 7 cannot tell matrices apart.
    "paper_from_two": Arm((*_PAPER, "budget.init={two_or_more}"), 1.25e-2),
}
"""The arms by name. The paper's own method wants a rate about ten times LoRA's."""


@dataclass(frozen=True)
class Cell:
    """One run of the bench, and what it found; the figures are NaN and zero where it failed."""

    arm: str
    task: str
    budget: float
    seed: int
    lr: float
    metric: str = ""
    score: float = math.nan
    loss: float = math.nan
    """The mean loss of the validation rows."""
    parameters: int = 0
    components: int = 0
    ranks: str = ""
    """Ranks by matrix, in model order, with spaces."""
    seconds: float = 0.0
    """Of work, by the clock, on a machine that may do other work beside it."""
    commit: str = ""

    @property
    def key(self) -> tuple[str, str, float, int, float]:
        """What tells a cell from the others."""
        return (self.arm, self.task, self.budget, self.seed, self.lr)

    def overrides(self, ranks: str = "") -> list[str]:
        """Return the run's overrides.

        Args:
            ranks: the folder with the ranks that the arm is given, where it is given any.
        """
        # The paper's own start, ceil(1.5 budget), wherever it is two or more.
        two = max(2, BudgetConfig(target=self.budget).initial)
        whole = max(1, math.ceil(self.budget))
        own = []
        for part in ARMS[self.arm].overrides:
            own.append(part.format(seed=self.seed, ranks=ranks, two_or_more=two, whole=whole))
        task, _, scale = self.task.partition(":")
        return [
            COMMON,
            f"task={task}",
            *SCALES[scale or "small"],
            *own,
            f"budget.target={self.budget:g}",
            f"optimizer.lr={self.lr:.6g}",
            f"seed={self.seed}",
        ]


def same_run(cell: Cell, cells: Iterable[Cell]) -> Cell | None:
    """Return a cell with what an equal run found, under another arm's name; None where none ran.

    Runs are equal to the bit where their settings are. The copy has taken no time.
    """
    if ARMS[cell.arm].ranks_of is not None:
        return None  # the ranks that it is given are no part of its settings
    wanted = cell.overrides()
    place = (cell.task, cell.budget, cell.seed, cell.lr)
    for other in cells:
        if (other.task, other.budget, other.seed, other.lr) != place or other.arm not in ARMS:
            continue
        is_equal = ARMS[other.arm].ranks_of is None and other.overrides() == wanted
        if is_equal and not math.isnan(other.score):
            return replace(other, arm=cell.arm, seconds=0.0)
    return None


COLUMNS = [field.name for field in fields(Cell)]


def read_cells(path: Path) -> list[Cell]:
    """Return the cells of a file; none where there is no file."""
    if not path.is_file():
        return []
    cells = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cells.append(_cell(row))
    return cells


def _cell(row: Mapping[str, str]) -> Cell:
    return Cell(
        arm=row["arm"],
        task=row["task"],
        budget=float(row["budget"]),
        seed=int(row["seed"]),
        lr=float(row["lr"]),
        metric=row["metric"],
        score=float(row["score"]),
        loss=float(row["loss"]),
        parameters=int(row["parameters"]),
        components=int(row["components"]),
        ranks=row["ranks"],
        seconds=float(row["seconds"]),
        commit=row["commit"],
    )


def append_cell(path: Path, cell: Cell) -> None:
    """Write a cell durably after the others."""
    is_new = not path.is_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerow([getattr(cell, name) for name in COLUMNS])
        file.flush()
        # A cell takes minutes, and is what a bench that is stopped goes on from.
        os.fsync(file.fileno())
