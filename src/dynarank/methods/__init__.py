"""Methods: how a model is adapted, one file each. To add one, write its class and name it here.

`base.py` says what a method owes. `dora.py` is the paper's method, and the one to read first; the
others are baselines and competitors. `config.py` and `dora_config.py` have the settings of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dynarank.errors import UserError, nearest
from dynarank.registry import lookup

if TYPE_CHECKING:
    from dynarank.allocation.config import BudgetConfig, DemConfig
    from dynarank.methods.base import Method
    from dynarank.methods.config import MethodConfig


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A method, before its class is imported."""

    path: str
    """Its class, as "module:Class"."""
    title: str
    """Its name in the paper's tables."""
    reads: frozenset[str]
    """Which settings of the budget and of DEM it reads, or refuses. A run warns of the others."""
    budget_use: str = "reads all of the budget"
    """How it uses the budget, where it does not read all of it; "method=NAME" goes before it."""
    acts_as: Mapping[str, object] = field(default_factory=dict)
    """Values of settings that it does not read, which say what it does in any case."""


def _budget(*names: str) -> frozenset[str]:
    return frozenset(f"budget.{name}" for name in names)


_TARGET = _budget("target")
_RANKS = _budget("target", "unit", "min_rank", "max_rank")
_CUT = _RANKS | _budget("init", "final")
_SCHEDULE = _CUT | _budget("warmup", "schedule")
_PRUNINGS = _SCHEDULE | _budget("interval", "regrow")
_PLACED = "places its components before training, and prunes none"
_SIZED = "has the size that budget.target stands for in parameters, from the start"
_NO_BUDGET = "has no budget: what it trains is the model's own"
_BY_PARAMETERS = {"budget.unit": "parameters"}


def _sized(path: str, title: str) -> Registered:
    """Return a method without ranks, which is made as large as the budget's parameters."""
    return Registered(
        path=path, title=title, reads=_TARGET, budget_use=_SIZED, acts_as=_BY_PARAMETERS
    )


def _without_budget(path: str, title: str) -> Registered:
    return Registered(path=path, title=title, reads=frozenset(), budget_use=_NO_BUDGET)


# The classes stand as texts: the help and a typo's answer read this table without torch.
METHODS = {
    "dora": Registered(
        path="dynarank.methods.dora:DoRA", title="DoRA", reads=_PRUNINGS | {"dem.eta"}
    ),
    "dynarank": Registered(
        path="dynarank.methods.dora:DynaRank", title="dynarank", reads=_PRUNINGS
    ),
    # The class of dynarank again: other defaults, under a name that reports can tell apart.
    "dynarank_orthogonal": Registered(
        path="dynarank.methods.dora:DynaRank", title="dynarank, orthogonal", reads=_PRUNINGS
    ),
    "lora": Registered(
        path="dynarank.methods.lora:LoRA",
        title="LoRA",
        # placement=random draws from budget.init components of each matrix.
        reads=_budget("target", "init", "min_rank", "max_rank"),
        budget_use="has fixed ranks of the parameters that budget.target stands for",
        acts_as=_BY_PARAMETERS,
    ),
    "adalora": Registered(
        path="dynarank.methods.adalora:AdaLoRA",
        title="AdaLoRA",
        reads=_CUT | _budget("warmup", "interval"),
        budget_use="has AdaLoRA's own schedule (cubic_adalora), and lets what it pruned return",
        acts_as={"budget.schedule": "cubic_adalora", "budget.regrow": True},
    ),
    "global_svd": Registered(
        path="dynarank.methods.global_svd:GlobalSvd",
        title="Global SVD",
        reads=_CUT,
        budget_use="cuts once, where budget.final begins",
        acts_as={"budget.schedule": "step"},
    ),
    "eva": Registered(
        path="dynarank.methods.eva:Eva", title="EVA", reads=_RANKS, budget_use=_PLACED
    ),
    "gora": Registered(
        path="dynarank.methods.gora:Gora", title="GoRA", reads=_RANKS, budget_use=_PLACED
    ),
    "sora": Registered(
        path="dynarank.methods.sora:Sora",
        title="SoRA",
        reads=_SCHEDULE,
        budget_use="closes gates at every step, and lets them open again until budget.final begins",
        acts_as={"budget.interval": 1, "budget.regrow": True},
    ),
    "diff_pruning": Registered(
        path="dynarank.methods.diff_pruning:DiffPruning",
        title="Diff Pruning",
        reads=_budget("target", "final"),
        budget_use="cuts single weights, once, to as many as budget.target stands for",
        acts_as={"budget.schedule": "step", **_BY_PARAMETERS},
    ),
    "houlsby": _sized("dynarank.methods.bottleneck:Houlsby", "HAdapter"),
    "pfeiffer": _sized("dynarank.methods.bottleneck:Pfeiffer", "PAdapter"),
    "bitfit": _without_budget("dynarank.methods.full:BitFit", "BitFit"),
    "full": _without_budget("dynarank.methods.full:Full", "Full FT"),
    "prompt": _sized("dynarank.methods.prompt:PromptTuning", "Prompt tuning"),
    "head": _without_budget("dynarank.methods.head:HeadOnly", "Head alone"),
}


def build_method(config: MethodConfig, budget: BudgetConfig, dem: DemConfig) -> Method[Any]:
    """Build the method that a configuration describes; `adapt` is its first step.

    Args:
        config: the method's own settings, of the class that its name stands for.
        budget: the components that the model may keep.
        dem: the weight of DEM (Eq. 10), for the methods that have it.

    Raises:
        UserError: the configuration's name is no method.

    Examples:
        >>> from torch import nn
        >>> from dynarank.allocation.config import BudgetConfig, DemConfig
        >>> from dynarank.methods import build_method
        >>> from dynarank.methods.dora_config import DoRAConfig
        >>> method = build_method(DoRAConfig(name="dora"), BudgetConfig(target=4), DemConfig())
        >>> model = nn.ModuleDict({"query": nn.Linear(8, 8), "head": nn.Linear(8, 2)})
        >>> model = method.adapt(model, targets=["query"], head=["head"])
        >>> allocator = method.allocator(total_steps=1000)
        >>> allocator.schedule.init, allocator.schedule.target
        (6, 4)
    """
    paths = {name: registered.path for name, registered in METHODS.items()}
    method_class: type[Method[Any]] = lookup("method.name", config.name, paths)
    return method_class(config, budget, dem)


def check_known(name: str) -> None:
    """Raise `UserError` where there is no method of that name."""
    if name not in METHODS:
        raise UserError(f"method.name = {name!r} is not known. {nearest(name, METHODS)}")
