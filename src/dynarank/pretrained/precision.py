"""A task head in float32 on a body of narrower weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def widen_head(model: PreTrainedModel, head: Sequence[str], dtype: torch.dtype) -> None:
    """Let the modules named in `head` compute in float32 after a body in `dtype`.

    Without a head, the output layer of the body gives its logits in float32.
    """
    for name in head:
        module = model.get_submodule(name).float()
        module.register_forward_pre_hook(_widen_inputs)
        # What follows a fresh pooler inside the body is narrow.
        if name.startswith(f"{model.base_model_prefix}."):
            module.register_forward_hook(_cast_output(dtype))
    logits = model.get_output_embeddings()
    # So no loss is computed of narrow numbers.
    if not head and logits is not None:
        logits.register_forward_hook(_cast_output(torch.float32))


def _widen_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a module's inputs, floating-point tensors among them in float32."""
    return tuple(_widen(value) for value in inputs)


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.float()
    return value


def _cast_output(dtype: torch.dtype) -> Callable[[nn.Module, Any, Any], Any]:
    """Return a forward hook that gives the output in `dtype`."""

    def cast(module: nn.Module, inputs: Any, output: Any) -> Any:
        return output.to(dtype) if isinstance(output, Tensor) else output

    return cast
