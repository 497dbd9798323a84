"""The linear maps that can be adapted: `nn.Linear`, `Conv1D`, and quantized ones of libraries."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def is_linear(module: nn.Module) -> bool:
    """Return whether `module` can be adapted.

    That is an `nn.Linear`, transformers' `Conv1D`, or another library's own linear map.
    """
    return isinstance(module, nn.Linear) or is_conv1d(module) or is_foreign_linear(module)


def is_foreign_linear(module: nn.Module) -> bool:
    """Return whether `module` is a linear map of its own kind, as GPTQ, AWQ and HQQ have them.

    They keep packed integers in buffers, and say by attributes what sizes they map between. A
    module with parts of its own is none: it is a wrapper, such as an adapter.
    """
    # By the name of the class: those libraries need not be installed.
    class_name = type(module).__name__.lower()
    if isinstance(module, nn.Linear) or "linear" not in class_name:
        return False
    d_in = getattr(module, "in_features", None)
    d_out = getattr(module, "out_features", None)
    if not isinstance(d_in, int) or not isinstance(d_out, int):
        return False
    has_parts = next(module.children(), None) is not None
    return not has_parts


def keep_differentiable(model: nn.Module) -> None:
    """Keep bitsandbytes' 4-bit linear maps in the layout that gradients pass through.

    At the first call in evaluation on a CPU with AVX512-BF16, bitsandbytes repacks such a weight
    for a kernel that has no derivative, and does not undo this when training goes on. From then on
    no gradient passes through the layer, so that the gradients of the adapters before it are wrong.
    Packing also rounds the weight's scales to bfloat16.
    """
    for module in model.modules():
        # By the attribute, so that the library needs no bitsandbytes.
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.state_dict()  # unpacks a weight that was packed already
            linear: Any = module
            # This is what bitsandbytes asks before it packs.
            linear.support_avx512bf16_for_cpu = False


def is_conv1d(module: nn.Module) -> bool:
    """Return whether `module` is transformers' `Conv1D`."""
    # By name and attribute, so that the library needs no transformers.
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def stores_transposed(base: nn.Module) -> bool:
    """Return whether a linear map keeps its weight as (d_in, d_out), as `Conv1D` does."""
    return is_conv1d(base)


def module_places(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return every module with the full name of each place that holds it, in model order.

    A module that two others hold has two names, and comes twice. What such a module holds comes
    once.
    """
    places: list[tuple[str, nn.Module]] = [("", model)]
    for name, parent in model.named_modules():  # each object once
        prefix = f"{name}." if name else ""
        # Not `named_children`: of a module that one parent holds twice it gives one name.
        for child, module in parent._modules.items():
            if module is not None:
                places.append((prefix + child, module))
    return places


def names_of(model: nn.Module) -> dict[int, list[str]]:
    """Return the full names of the places that hold each module, by the id() of it."""
    names: dict[int, list[str]] = {}
    for name, module in module_places(model):
        names.setdefault(id(module), []).append(name)
    return names


def weight_holders(model: nn.Module) -> dict[int, list[str]]:
    """Return the full names of the modules that hold each parameter directly, by the id() of it.

    A parameter of several modules is shared, as a tied `lm_head` shares the embeddings' weight:
    what is added to it changes all of them. Names are those of `module_places`.
    """
    holders: dict[int, list[str]] = {}
    for name, module in module_places(model):
        # Once for each module, also where it has the parameter under two names.
        for parameter in dict.fromkeys(module._parameters.values()):
            if parameter is not None:
                holders.setdefault(id(parameter), []).append(name)
    return holders


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Return (d_in, d_out) of a linear map. Raises `TypeError` for any other module."""
    if isinstance(module, nn.Linear):  # also 4-bit linears, whose packed weight has another shape
        return module.in_features, module.out_features
    if is_conv1d(module):
        weight = module.weight
        assert isinstance(weight, Tensor)
        d_in, d_out = weight.shape
        return d_in, d_out
    if is_foreign_linear(module):
        sizes: Any = module
        return sizes.in_features, sizes.out_features
    raise TypeError(f"cannot adapt a {type(module).__name__}: it is neither nn.Linear nor Conv1D")
