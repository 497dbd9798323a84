"""Tables over seeds: settings down, tasks across, and which differences are more than chance."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynarank.errors import UserError, nearest
from dynarank.report.runs import OPEN, Run, implied, varied
from dynarank.report.statistics import Comparison, Summary, compare, holm, summarize

Setting = tuple[Any, ...]
ALPHA = 0.05


@dataclass
class Table:
    """Scores by setting, task and seed."""

    keys: list[str]
    """Names of the settings that vary."""
    tasks: list[str]
    metrics: dict[str, str]
    """The metric that selects, by task."""
    cells: dict[tuple[Setting, str], dict[int, Run]]
    """Runs by seed, by setting and task."""
    last: bool = False
    """Whether scores are the last epoch's, instead of the selected one's."""
    settings: list[Setting] = field(default_factory=list)
    implied: list[str] = field(default_factory=list)
    """Settings that differ along with the keys."""

    def setting(self, run: Run) -> Setting:
        """A run's values of the keys."""
        return tuple(run.settings.get(key, OPEN) for key in self.keys)

    def runs(self) -> list[Run]:
        """All runs, by task, setting and seed."""
        cells = [
            self.cells.get((setting, task), {}) for task in self.tasks for setting in self.settings
        ]
        return [run for cell in cells for _, run in sorted(cell.items())]

    def scores(self, setting: Setting, task: str) -> dict[int, float]:
        """By seed; empty where there is no run."""
        return {
            seed: run.score(self.last) for seed, run in self.cells.get((setting, task), {}).items()
        }

    def summary(self, setting: Setting, task: str) -> Summary | None:
        scores = list(self.scores(setting, task).values())
        return summarize(scores) if scores else None

    def label(self, setting: Setting) -> str:
        """The setting in words; the method's name where nothing varies."""
        pairs = zip(self.keys, setting, strict=True)
        words = ", ".join(
            f"{key.removesuffix('.name')}={value}" for key, value in pairs if value != OPEN
        )
        return words or str(self.runs()[0].results["method"])


def build_table(runs: Sequence[Run], last: bool = False) -> Table:
    """Runs in their cells.

    Raises:
        UserError: two runs have the same settings, task and seed.
    """
    keys = varied(runs)
    cells: dict[tuple[Setting, str], dict[int, Run]] = {}
    for run in runs:
        setting = tuple(run.settings.get(key, OPEN) for key in keys)
        cell = cells.setdefault((setting, run.results["task"]), {})
        if run.seed in cell:
            raise UserError(
                f"{cell[run.seed].folder} and {run.folder} are the same run (settings, task, seed {run.seed}). "
                "Move one away, or report on one sweep's folder"
            )
        cell[run.seed] = run
    tasks = sorted({task for _, task in cells})
    metrics = {run.results["task"]: run.metric for run in runs}
    settings = sorted(
        {setting for setting, _ in cells}, key=lambda one: [(isinstance(v, str), v) for v in one]
    )
    return Table(keys, tasks, metrics, cells, last, settings, implied(runs, keys))


@dataclass(frozen=True)
class Difference:
    """A setting less the reference on a task, over the seeds that both have."""

    setting: Setting
    task: str
    found: Comparison
    p_holm: float

    @property
    def verdict(self) -> str:
        """What may be said: higher, lower, or not told apart."""
        if math.isnan(self.p_holm):
            return "one seed tells nothing" if self.found.n < 2 else "a score is missing"
        if self.p_holm > ALPHA:
            return "not told apart"
        return "higher" if self.found.difference > 0 else "lower"


def differences(table: Table, against: Setting) -> list[Difference]:
    """Every other setting less `against`, on every task; p values corrected by Holm over all of them."""
    found: list[tuple[Setting, str, Comparison]] = []
    for setting in table.settings:
        for task in table.tasks:
            mine, theirs = table.scores(setting, task), table.scores(against, task)
            seeds = sorted(mine.keys() & theirs.keys())
            if setting != against and seeds:
                found.append(
                    (setting, task, compare([mine[s] for s in seeds], [theirs[s] for s in seeds]))
                )
    adjusted = holm([one.p_t for _, _, one in found])
    return [Difference(*parts, p) for parts, p in zip(found, adjusted, strict=True)]


def find_setting(table: Table, wanted: str | None) -> Setting:
    """The setting that KEY=VALUE names; the first one where nothing is wanted. Raises `UserError`."""
    if wanted is None:
        return table.settings[0]
    key, _, value = wanted.partition("=")
    names = {name.removesuffix(".name"): index for index, name in enumerate(table.keys)}
    index = names.get(key.removesuffix(".name"))
    if index is None:
        raise UserError(
            f"--against {wanted}: {key} does not vary here. {nearest(key, names or ['nothing'])}"
        )
    fitting = [setting for setting in table.settings if str(setting[index]) == value]
    if not fitting:
        raise UserError(
            f"--against {wanted}: there is {', '.join(sorted({str(s[index]) for s in table.settings}))}"
        )
    return fitting[0]


def _cells(table: Table, setting: Setting, form: Mapping[str, str]) -> list[str]:
    found = []
    for task in table.tasks:
        one = table.summary(setting, task)
        if one is None or one.undefined:
            found.append(
                form["none"] + (form["undefined"].format(one.undefined, one.n) if one else "")
            )
            continue
        spread = "" if one.n == 1 else form["spread"].format(one.sd)
        found.append(f"{one.mean:.4f}{spread}" + form["n"].format(one.n))
    return found


def markdown(table: Table) -> str:
    """Mean, standard deviation and number of seeds in each cell."""
    heads = [
        *(key.removesuffix(".name") for key in table.keys),
        *(f"{t} ({table.metrics[t]})" for t in table.tasks),
    ]
    form = {
        "spread": " ± {:.4f}",
        "n": " (n={})",
        "none": "-",
        "undefined": " ({} of {} seeds without a score)",
    }
    rows = [[*map(str, setting), *_cells(table, setting, form)] for setting in table.settings]
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_csv(table: Table) -> str:
    """A line a setting and task: mean, standard deviation, n, interval, and every seed's score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*table.keys, "task", "metric", "mean", "sd", "n", "low", "high", "seeds", "scores"]
    )
    for setting in table.settings:
        for task in table.tasks:
            if one := table.summary(setting, task):
                scores = table.scores(setting, task)
                seeds, values = zip(*sorted(scores.items()), strict=True)
                lists = (" ".join(map(str, seeds)), " ".join(f"{value:.6g}" for value in values))
                writer.writerow(
                    [
                        *setting,
                        task,
                        table.metrics[task],
                        one.mean,
                        one.sd,
                        one.n,
                        one.low,
                        one.high,
                        *lists,
                    ]
                )
    return text.getvalue()


def differences_markdown(table: Table, against: Setting, found: Sequence[Difference]) -> str:
    """A line a comparison, with what may be said."""
    if not found:
        return "Nothing to compare: no other setting shares a task and a seed.\n"
    lines = [f"Less {table.label(against)}, paired by seed:\n\n"
             "| setting | task | difference | 95 % interval | p (t) | p (Holm) | p (flips) | n | |\n"
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"]  # fmt: skip
    for one in found:
        c = one.found
        interval = "-" if math.isnan(c.low) else f"{c.low:+.4f} to {c.high:+.4f}"
        p_values = (
            "-" if math.isnan(p) else f"{p:.4f}" for p in (c.p_t, one.p_holm, c.p_permutation)
        )
        cells = (
            table.label(one.setting),
            one.task,
            f"{c.difference:+.4f}",
            interval,
            *p_values,
            str(c.n),
            one.verdict,
        )
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)
