"""Methods: how a model is adapted, one file each. To add one, write its class and name it here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynarank.registry import lookup

if TYPE_CHECKING:
    from dynarank.allocation.config import BudgetConfig, DemConfig
    from dynarank.methods.base import Method
    from dynarank.methods.config import MethodConfig

METHODS = {
    "dora": "dynarank.methods.dora:DoRA",
    "lora": "dynarank.methods.lora:LoRA",
    "adalora": "dynarank.methods.adalora:AdaLoRA",
    "houlsby": "dynarank.methods.bottleneck:Houlsby",
    "pfeiffer": "dynarank.methods.bottleneck:Pfeiffer",
    "bitfit": "dynarank.methods.full:BitFit",
    "full": "dynarank.methods.full:Full",
    "prompt": "dynarank.methods.prompt:PromptTuning",
    "head": "dynarank.methods.head:HeadOnly",
}


def build_method(config: MethodConfig, budget: BudgetConfig, dem: DemConfig) -> Method[Any]:
    """The method that a configuration describes. Raises `UserError` for an unknown name."""
    method: Method[Any] = lookup("method.name", config.name, METHODS)(config, budget, dem)
    return method
