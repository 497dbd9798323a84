"""Whether weights are quantized, as the library that loaded them says."""

from __future__ import annotations

from typing import Any

from torch import nn


def is_quantized(model: nn.Module) -> bool:
    """Return whether a model of transformers holds quantized weights.

    transformers names the quantization in the model's configuration, whichever library does it;
    the type of a weight does not tell, for some libraries pack integers in floating-point tensors.
    For a part of a model, what bitsandbytes and torchao leave on a weight is looked at.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "quantization_config", None) is not None:
        return True
    return any(_is_quantized_weight(parameter) for parameter in model.parameters())


def _is_quantized_weight(parameter: nn.Parameter) -> bool:
    """Return whether a parameter is of a quantizing library's own kind, or holds no numbers."""
    # bitsandbytes: Params4bit.quant_state, Int8Params.SCB; torchao: a subclass of Tensor.
    marks = ("quant_state", "SCB", "tensor_impl", "qdata")
    if any(getattr(parameter, mark, None) is not None for mark in marks):
        return True
    return not parameter.is_floating_point() or parameter.element_size() < 2
