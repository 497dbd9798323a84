"""Settings that change nothing in a run: the method does not read them, or another value rules.

What a method reads of the budget and of DEM stands in `dynarank.methods.METHODS`. `CONDITIONS` are
the settings that other settings switch off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dynarank.config.schema import TrainConfig
from dynarank.methods import METHODS, check_known

NEUTRAL: Mapping[str, object] = {"budget.min_rank": 0, "budget.max_rank": None, "dem.eta": 0}
"""Values that ask for nothing, so that nobody is disappointed by them."""
DRAWING_SCORES = ("random", "shuffled")
SCALED_RATES = ("task.lr", "model.lr_scale", "method.lr_scale")
PEAK_RATES = ("optimizer.lr", *SCALED_RATES)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Settings that change nothing where other settings have certain values.

    The texts are formatted with the run: `{run.method.score}` is a value of its configuration.
    """

    settings: tuple[str, ...]
    unused: Callable[[Any], bool]
    """Whether the run is such a one."""
    reason: str
    """Why they change nothing."""
    remedy: str
    """What would give them an effect."""


def _reads(run: TrainConfig, *settings: str) -> bool:
    return METHODS[run.method.name].reads.issuperset(settings)


def _keeps_all(run: TrainConfig) -> bool:
    prunes = _reads(run, "budget.init", "budget.final")
    return prunes and run.budget.initial == run.budget.target


def _score(run: TrainConfig) -> str | None:
    """Return what a method of the DoRA family judges by; None for other methods."""
    return getattr(run.method, "score", None)


def _trains_head(run: TrainConfig) -> bool:
    from dynarank.tasks import build_task

    # This loads the task's class, and torch with it.
    return build_task(run.task).has_head


CONDITIONS = (
    Condition(
        settings=("method.placement_seed", "budget.init"),
        unused=lambda run: run.method.name == "lora" and run.method.placement != "random",
        reason="method.placement={run.method.placement} draws no components",
        remedy="Set method.placement=random",
    ),
    Condition(
        settings=("method.score_seed",),
        unused=lambda run: _score(run) not in (None, *DRAWING_SCORES),
        reason="method.score={run.method.score} draws nothing",
        remedy="Set method.score=random",
    ),
    Condition(
        settings=("method.beta",),
        unused=lambda run: _score(run) in ("sensitivity", *DRAWING_SCORES),
        reason="method.score={run.method.score} is not smoothed by it",
        remedy="Take method.score=fisher, absolute or relative",
    ),
    Condition(
        settings=("budget.regrow",),
        unused=lambda run: not getattr(run.method, "train_c", True) and run.budget.regrow,
        reason="under method.train_c=false a pruned component has no gradient to return by",
        remedy="Set method.train_c=true method.init=orthogonal",
    ),
    Condition(
        settings=(
            "budget.warmup",
            "budget.interval",
            "budget.schedule",
            "budget.regrow",
            "budget.unit",
            "method.score",
            "method.score_seed",
            "method.beta",
            "method.rate_power",
            "method.sparsity",
        ),
        unused=_keeps_all,
        reason="budget.init equals budget.target, so that nothing is pruned",
        remedy="Give a higher budget.init",
    ),
    Condition(
        settings=("budget.warmup", "budget.interval"),
        unused=lambda run: _reads(run, "budget.schedule") and run.budget.schedule == "step",
        reason="budget.schedule=step prunes once, where budget.final begins",
        remedy="Take another budget.schedule",
    ),
    Condition(
        settings=("budget.warmup", "budget.schedule"),
        unused=lambda run: run.method.name == "sora" and run.method.sparsity == 0,
        reason="method.sparsity=0 closes no gate before budget.final begins",
        remedy="Give method.sparsity",
    ),
    Condition(
        settings=("model.targets",),
        unused=lambda run: not METHODS[run.method.name].reads,
        reason="method={run.method.name} adapts no layers",
        remedy="Take another method",
    ),
    Condition(
        settings=("optimizer.head_lr",),
        unused=lambda run: run.optimizer.head_lr is not None and not _trains_head(run),
        reason="task={run.task.name} has no head of its own",
        remedy="optimizer.lr is the rate of all that trains",
    ),
    Condition(
        settings=PEAK_RATES,
        unused=lambda run: run.method.name == "head" and run.optimizer.head_lr is not None,
        reason="method=head trains the head alone, at optimizer.head_lr={run.optimizer.head_lr:g}",
        remedy="Change optimizer.head_lr",
    ),
    Condition(
        settings=SCALED_RATES,
        unused=lambda run: run.optimizer.lr is not None,
        reason="optimizer.lr={run.optimizer.lr:g} is given, and comes before it",
        remedy="Change optimizer.lr, or set it to null",
    ),
    Condition(
        settings=("task.epochs",),
        unused=lambda run: run.trainer.epochs is not None,
        reason="trainer.epochs={run.trainer.epochs} is given, and comes before it",
        remedy="Change trainer.epochs, or set it to null",
    ),
    Condition(
        settings=("task.batch_size",),
        unused=lambda run: run.trainer.batch_size is not None,
        reason="trainer.batch_size={run.trainer.batch_size} is given, and comes before it",
        remedy="Change trainer.batch_size, or set it to null",
    ),
)
"""In the order in which they are asked: of several, the first that holds is told."""


def unused_settings(run: TrainConfig) -> dict[str, str]:
    """Return the settings that change nothing in a run, each with why and what would change that.

    A value that says what the run does in any case is not among them.

    Raises:
        UserError: there is no such method.
    """
    # First, for the tables below are asked by this name.
    check_known(run.method.name)
    unused = dict(_unused_by_method(run))
    for condition in CONDITIONS:
        # A test of one condition may load code; a setting that is settled needs none.
        if unused.keys() >= set(condition.settings) or not condition.unused(run):
            continue
        told = f"{condition.reason}, so that this changes nothing. {condition.remedy}"
        for setting in condition.settings:
            unused.setdefault(setting, told.format(run=run))
    return unused


def _unused_by_method(run: TrainConfig) -> Iterator[tuple[str, str]]:
    """Yield what the run's method does not read of the budget and of DEM, and why."""
    name = run.method.name
    method = METHODS[name]
    neutral = {**NEUTRAL, **method.acts_as}
    for group, settings in (("budget", run.budget), ("dem", run.dem)):
        use = "has no DEM" if group == "dem" else method.budget_use
        for field in dataclasses.fields(settings):
            setting = f"{group}.{field.name}"
            if setting in method.reads:
                continue
            value = getattr(settings, field.name)
            if setting in neutral and value == neutral[setting]:
                continue
            readers = (other for other, known in METHODS.items() if setting in known.reads)
            yield (
                setting,
                f"method={name} {use}, so that this changes nothing. Leave it out, or take a "
                f"method that reads it, as {next(readers)} does",
            )
