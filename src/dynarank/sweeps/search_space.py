"""What `hydra/sweeper=tune` searches: ranges and choices in Hydra's grammar, as Optuna's distributions."""

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
    """Optuna, told to be quiet. Raises `UserError` where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError("hydra/sweeper=tune needs Optuna: pip install -e '.[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass
class Space:
    """What is searched, and what is not."""

    distributions: dict[str, BaseDistribution]
    fixed: list[str]
    """Overrides of every run."""
    seeds: list[str]
    """Those that each trial runs on; none: the configuration's."""

    @property
    def runs(self) -> int:
        """Runs a trial."""
        return max(1, len(self.seeds))

    def overrides(self, parameters: dict[str, Any]) -> list[list[str]]:
        """Of each run of a trial."""
        chosen = [*self.fixed, *(f"{name}={value}" for name, value in parameters.items())]
        return [[*chosen, f"seed={seed}"] for seed in self.seeds] or [chosen]

    def extremes(self) -> Iterator[tuple[str, Any, list[str]]]:
        """Each end of a range and each choice: the setting, its value, and overrides that have it."""
        values = {name: _values(one) for name, one in self.distributions.items()}
        first = {name: known[0] for name, known in values.items()}
        for name, known in values.items():
            for value in known:
                yield name, value, self.overrides({**first, name: value})[0]

    def record(self) -> dict[str, Any]:
        """What a search cannot change and stay itself."""
        from optuna.distributions import distribution_to_json

        searched = {
            name: distribution_to_json(one) for name, one in sorted(self.distributions.items())
        }
        return {"searched": searched, "fixed": sorted(kept(self.fixed)), "seeds": self.seeds}


def _values(distribution: Any) -> list[Any]:
    choices = getattr(distribution, "choices", None)
    return list(choices) if choices else [distribution.low, distribution.high]


def kept(overrides: Sequence[str]) -> list[str]:
    """Those that enter a run's numbers."""
    return [one for one in overrides if not one.startswith(("sweep.", "resume"))]


def parse_space(arguments: Sequence[str]) -> Space:
    """Read overrides in Hydra's grammar; a later one of a setting takes the place of an earlier.

    Raises:
        UserError: a range that cannot be, or nothing to search.
    """
    optuna = import_optuna()
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = {
        one.get_key_element(): one
        for one in OverridesParser.create().parse_overrides(list(arguments))
    }
    space = Space({}, [], [])
    for name, override in parsed.items():
        if override.is_sweep_override() and name == "seed" and override.is_discrete_sweep():
            space.seeds = list(override.sweep_string_iterator())
        elif override.is_interval_sweep():
            space.distributions[name] = _range(name, override.value())
        elif override.is_sweep_override():
            choices = list(override.sweep_string_iterator())
            space.distributions[name] = optuna.distributions.CategoricalDistribution(choices)
        else:
            space.fixed.append(f"{name}={override.get_value_element_as_str()}")
    if not space.distributions:
        raise UserError(
            "nothing to search: name a range, 'optimizer.lr=interval(1e-5,1e-2)', or choices, budget.init=3,4,6"
        )
    return space


def _range(name: str, interval: Any) -> BaseDistribution:
    optuna = import_optuna()
    low, high = interval.start, interval.end
    given = f"{name}=interval({low},{high})"
    if unknown := interval.tags - {"log", "linear"}:
        raise UserError(
            f"{given}: the tag {min(unknown)!r} says nothing. {nearest(min(unknown), ['log', 'linear'])}"
        )
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{given}: the lower end must be below the upper, and both finite")
    scale_log = "log" in interval.tags or (name in LOG and "linear" not in interval.tags)
    if scale_log and low <= 0:
        raise UserError(
            f"{given}: a logarithmic range begins above 0. Or take 'tag(linear,interval({low},{high}))'"
        )
    kind = optuna.distributions
    if isinstance(low, int) and isinstance(high, int):
        return kind.IntDistribution(low, high, log=scale_log)
    return kind.FloatDistribution(low, high, log=scale_log)
