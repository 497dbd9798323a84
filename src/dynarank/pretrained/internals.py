"""Names of transformers that are not public: each stands in one function here, with a test."""

from __future__ import annotations

from typing import Any


def has_model_class(auto_class: str, settings: Any) -> bool:
    """Return whether transformers has a model of the auto class for this configuration.

    Relies on `_model_mapping`, transformers' table from configuration classes to model classes.
    """
    import transformers

    return type(settings) in getattr(transformers, auto_class)._model_mapping


def was_adapter(model: Any) -> bool:
    """Return whether `from_pretrained` was given an adapter and followed it to its base.

    Relies on `_hf_peft_config_loaded`, which transformers sets on the model then.
    """
    return bool(getattr(model, "_hf_peft_config_loaded", False))
