"""The linear maps that can be adapted: `nn.Linear` and transformers' `Conv1D`."""

from __future__ import annotations

from torch import Tensor, nn


def is_linear(module: nn.Module) -> bool:
    """Return whether `module` can be adapted: an `nn.Linear` or transformers' `Conv1D`."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    """Return whether `module` is transformers' `Conv1D`."""
    # By name and attribute, so that the library needs no transformers.
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def stores_transposed(base: nn.Module) -> bool:
    """Return whether a linear map keeps its weight as (d_in, d_out), as `Conv1D` does."""
    return not isinstance(base, nn.Linear)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Return (d_in, d_out) of a linear map. Raises `TypeError` for any other module."""
    if isinstance(module, nn.Linear):  # also 4-bit linears, whose packed weight has another shape
        return module.in_features, module.out_features
    if is_conv1d(module):
        weight = module.weight
        assert isinstance(weight, Tensor)
        d_in, d_out = weight.shape
        return d_in, d_out
    raise TypeError(f"cannot adapt a {type(module).__name__}: it is neither nn.Linear nor Conv1D")
