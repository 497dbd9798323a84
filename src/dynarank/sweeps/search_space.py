"""What `hydra/sweeper=tune` searches.

Ranges and choices are given in Hydra's grammar, and become Optuna's distributions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynarank.errors import UserError, nearest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LOG = ("optimizer.lr",)
"""Settings whose ranges are searched on a logarithmic scale, unless tagged linear."""


def import_optuna() -> Any:
    """Return Optuna, which logs warnings only. Raises `UserError` where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError("hydra/sweeper=tune needs Optuna: pip install 'dynarank[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass
class Space:
    """What is searched, and what is not."""

    distributions: dict[str, BaseDistribution]
    """What each searched setting is drawn from."""
    fixed: list[str]
    """Overrides of every run."""
    seeds: list[str]
    """The seeds that each trial runs on; none for the configuration's."""

    @property
    def runs(self) -> int:
        """Number of runs of a trial."""
        return max(1, len(self.seeds))

    def overrides(self, parameters: dict[str, Any]) -> list[list[str]]:
        """Return the overrides of each run of a trial with these parameters."""
        chosen = self.fixed + [f"{name}={value}" for name, value in parameters.items()]
        if not self.seeds:
            return [chosen]
        return [[*chosen, f"seed={seed}"] for seed in self.seeds]

    def extremes(self) -> Iterator[tuple[str, Any, list[str]]]:
        """Yield each end of a range and each choice.

        Each comes as the setting's name, the value, and the overrides of a run that has it.
        """
        extremes = {}
        for name, distribution in self.distributions.items():
            extremes[name] = _extreme_values(distribution)
        first = {name: values[0] for name, values in extremes.items()}
        for name, values in extremes.items():
            for value in values:
                yield name, value, self.overrides({**first, name: value})[0]

    def record(self) -> dict[str, Any]:
        """Return what a search cannot change and stay itself."""
        from optuna.distributions import distribution_to_json

        searched = {}
        for name, distribution in sorted(self.distributions.items()):
            searched[name] = distribution_to_json(distribution)
        fixed = sorted(without_housekeeping(self.fixed))
        return {"searched": searched, "fixed": fixed, "seeds": self.seeds}


def _extreme_values(distribution: Any) -> list[Any]:
    """Return a distribution's choices, or the ends of its range."""
    choices = getattr(distribution, "choices", None)
    return list(choices) if choices else [distribution.low, distribution.high]


def without_housekeeping(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a run's numbers depend on."""
    housekeeping = ("sweep.", "resume")
    return [override for override in overrides if not override.startswith(housekeeping)]


def parse_space(arguments: Sequence[str]) -> Space:
    """Read what is searched from overrides in Hydra's grammar.

    A later override of a setting takes the place of an earlier one.

    Raises:
        UserError: a range that cannot be, or nothing to search.
    """
    optuna = import_optuna()
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = {}
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        parsed[override.get_key_element()] = override
    space = Space(distributions={}, fixed=[], seeds=[])
    for name, override in parsed.items():
        if override.is_sweep_override() and name == "seed" and override.is_discrete_sweep():
            space.seeds = list(override.sweep_string_iterator())
        elif override.is_interval_sweep():
            space.distributions[name] = _range(name, override.value())
        elif override.is_sweep_override():
            # Texts, as they were written: a trial's override is then the very one that was given.
            choices = list(override.sweep_string_iterator())
            space.distributions[name] = optuna.distributions.CategoricalDistribution(choices)
        else:
            space.fixed.append(f"{name}={override.get_value_element_as_str()}")
    if not space.distributions:
        raise UserError(
            "nothing to search: name a range, 'optimizer.lr=interval(1e-5,1e-2)', "
            "or choices, budget.init=3,4,6"
        )
    return space


def _range(name: str, interval: Any) -> BaseDistribution:
    """Return the distribution of a range. Raises `UserError` for a range that cannot be."""
    optuna = import_optuna()
    low, high = interval.start, interval.end
    given = f"{name}=interval({low},{high})"
    scales = ["log", "linear"]
    unknown = interval.tags - set(scales)
    if unknown:
        tag = min(unknown)
        raise UserError(f"{given}: the tag {tag!r} is not known. {nearest(tag, scales)}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{given}: the lower end must be below the upper, and both finite")
    scale_log = "log" in interval.tags or (name in LOG and "linear" not in interval.tags)
    if scale_log and low <= 0:
        raise UserError(
            f"{given}: a logarithmic range begins above 0. "
            f"Or take 'tag(linear,interval({low},{high}))'"
        )
    kind = optuna.distributions
    # Hydra makes the ends floats, unless the interval is wrapped: int(interval(2,8)).
    if isinstance(low, int) and isinstance(high, int):
        return kind.IntDistribution(low, high, log=scale_log)
    return kind.FloatDistribution(low, high, log=scale_log)
