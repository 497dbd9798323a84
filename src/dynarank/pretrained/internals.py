"""Names of transformers that are not public: each stands in one function here, with a test."""

from __future__ import annotations

from typing import Any


def has_model_class(auto_class: str, settings: Any) -> bool:
    """Return whether transformers has a model of the auto class for this configuration.

    Relies on `_model_mapping`, transformers' table from configuration classes to model classes.
    """
    import transformers

    return type(settings) in getattr(transformers, auto_class)._model_mapping


def model_loader(auto_class: str, settings: Any) -> Any:
    """Return what loads a model for this configuration: the auto class, or a class of its own.

    Where transformers knows several classes for a configuration, the auto class goes by the name
    that config.json records, which may be one that cannot be trained (DeiT's with a teacher). The
    first of them is the plain one. Relies on `_model_mapping`.
    """
    import transformers

    loader = getattr(transformers, auto_class)
    if type(settings) not in loader._model_mapping:
        return loader  # code of the model's own
    known = loader._model_mapping[type(settings)]
    return known[0] if isinstance(known, tuple) else loader


def was_adapter(model: Any) -> bool:
    """Return whether `from_pretrained` was given an adapter and followed it to its base.

    Relies on `_hf_peft_config_loaded`, which transformers sets on the model then.
    """
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def forget_quantizer(model: Any) -> None:
    """Have transformers save a model as a plain one, after its weights were turned back.

    Relies on `hf_quantizer`, by which it was loaded, and on `_weight_conversions`, what was done to
    its weights then and would be undone at saving.
    """
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model._weight_conversions = None  # transformers finds those of the architecture anew
