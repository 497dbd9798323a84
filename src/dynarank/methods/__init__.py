"""Methods: how a model is adapted, one file each. To add one, write its class and name it here.

`base.py` says what a method owes. `dora.py` is the paper's method, and the one to read first; the
others are baselines and competitors. `config.py` has the settings of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


METHODS = {
    "dora": Registered(path="dynarank.methods.dora:DoRA", title="DoRA"),
    "dynarank": Registered(path="dynarank.methods.dora:DynaRank", title="dynarank"),
    "dynarank_orthogonal": Registered(
        path="dynarank.methods.dora:DynaRank", title="dynarank, orthogonal"
    ),
    "lora": Registered(path="dynarank.methods.lora:LoRA", title="LoRA"),
    "adalora": Registered(path="dynarank.methods.adalora:AdaLoRA", title="AdaLoRA"),
    "global_svd": Registered(path="dynarank.methods.global_svd:GlobalSvd", title="Global SVD"),
    "eva": Registered(path="dynarank.methods.eva:Eva", title="EVA"),
    "gora": Registered(path="dynarank.methods.gora:Gora", title="GoRA"),
    "sora": Registered(path="dynarank.methods.sora:Sora", title="SoRA"),
    "diff_pruning": Registered(
        path="dynarank.methods.diff_pruning:DiffPruning", title="Diff Pruning"
    ),
    "houlsby": Registered(path="dynarank.methods.bottleneck:Houlsby", title="HAdapter"),
    "pfeiffer": Registered(path="dynarank.methods.bottleneck:Pfeiffer", title="PAdapter"),
    "bitfit": Registered(path="dynarank.methods.full:BitFit", title="BitFit"),
    "full": Registered(path="dynarank.methods.full:Full", title="Full FT"),
    "prompt": Registered(path="dynarank.methods.prompt:PromptTuning", title="Prompt tuning"),
    "head": Registered(path="dynarank.methods.head:HeadOnly", title="Head alone"),
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
        >>> from dynarank.methods.config import DoRAConfig
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
