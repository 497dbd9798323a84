"""Bases with quantized weights: made so at loading, or stored so; recognized, and taken back.

Whether weights are quantized is asked of the library that loaded them.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dynarank.adapters.linears import is_linear
from dynarank.errors import UserError, kind_and_first_line
from dynarank.pretrained.hub import ModelConfig
from dynarank.pretrained.internals import forget_quantizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TORCHAO = "torchao"
"""The package whose quantized weights are a kind of tensor each, in plain layers."""
NUMBERED = re.compile(r"\.\d+\.")
"""In the name of a layer of one of the body's blocks."""


def check_quantization(config: ModelConfig, settings: Any) -> None:
    """Raise `UserError` where the weights cannot be quantized as the user asks.

    Args:
        config: of the model.
        settings: its configuration, as transformers reads its config.json.
    """
    if config.quantization is None:
        return
    stored = stored_quantization(settings)
    if stored is not None:
        raise UserError(
            f"model.quantization = {config.quantization}: the weights of {config.path} come "
            f"quantized already ({stored}). Use model.quantization=null"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization = {config.quantization}: needs bitsandbytes. "
            "Run pip install bitsandbytes"
        )


def stored_quantization(settings: Any) -> str | None:
    """Return the method that a model's stored weights are quantized by; None for plain ones."""
    recorded = getattr(settings, "quantization_config", None)
    if recorded is None:
        return None
    if not isinstance(recorded, dict):
        recorded = recorded.to_dict()
    method = recorded.get("quant_method", "unknown")
    return str(getattr(method, "value", method))


def quantization_options(config: ModelConfig, loader: Any, settings: Any) -> dict[str, Any]:
    """Return what `from_pretrained` must know to quantize the weights; nothing where it is not to.

    Args:
        config: of the model.
        loader: the class, or auto class, that loads it.
        settings: its configuration.
    """
    if config.quantization is None:
        return {}
    from transformers import BitsAndBytesConfig

    kept = _kept_linears(loader, settings)
    if config.quantization == "int8":
        # It says for every call that it computes in float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        wanted = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    else:
        wanted = BitsAndBytesConfig(
            load_in_4bit=True,
            # As QLoRA has it.
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, config.dtype),
            # It is read for 4 bits too, whatever its name says.
            llm_int8_skip_modules=kept,
        )
    return {"quantization_config": wanted}


def _kept_linears(loader: Any, settings: Any) -> list[str]:
    """Return the names of the linear layers that are not quantized: all outside of the blocks.

    These are the task head, an output layer, and poolers, which may begin anew.
    """
    # A class of a model has no public call for this; an auto class has one.
    make = getattr(loader, "from_config", None) or loader._from_config
    with torch.device("meta"):  # names alone are wanted
        skeleton = make(settings)
    linears = [name for name, module in skeleton.named_modules() if is_linear(module)]
    kept = [name for name in linears if not NUMBERED.search(name)]
    if len(kept) == len(linears):
        raise UserError(
            "model.quantization: no linear layer of this model stands in a numbered block, so that "
            "none would be quantized. Use model.quantization=null"
        )
    return kept


def quantized_modules(model: nn.Module) -> list[str]:
    """Return the names of the modules that hold a quantized weight themselves."""
    names = []
    for name, module in model.named_modules():
        if any(_is_quantized_weight(weight) for weight in module.parameters(recurse=False)):
            names.append(name)
    return names


def dequantize(model: PreTrainedModel, where: str) -> None:
    """Turn a quantized model into a plain one of float32 weights, in place.

    Args:
        where: where the model came from, for errors.

    Raises:
        UserError: the library that quantized it cannot take it back.
    """
    if _turn_tensors_back(model):
        return
    try:
        model.dequantize(dtype=torch.float32)
    except Exception as error:  # each library has its own kinds
        raise UserError(
            f"{where}: its weights are quantized, and cannot be turned back to add an update to "
            f"them ({kind_and_first_line(error)}). Name the unquantized model by --base, or use "
            "the adapter beside its base"
        ) from error


def _turn_tensors_back(model: Any) -> bool:
    """Make plain parameters of torchao's, which transformers has no call for.

    Returns:
        Whether the model held any.
    """
    found = False
    for module in model.modules():
        # A list, for parameters are replaced on the way.
        for name, parameter in list(module.named_parameters(recurse=False)):
            if type(parameter).__module__.split(".")[0] == TORCHAO:
                plain = parameter.dequantize().detach().to(torch.float32)
                setattr(module, name, nn.Parameter(plain, requires_grad=False))
                found = True
    if found:
        forget_quantizer(model)
    return found


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
    # Of one byte are the fp8 types, which torch counts as floating-point.
    return not parameter.is_floating_point() or parameter.element_size() < 2
