"""What becomes of base weights when a run is loaded: widened, moved, an update added."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from dynarank.pretrained.models import Pretrained


def widen_base(pretrained: Pretrained) -> str | None:
    """Turn a base into float32.

    Returns:
        The method that its weights were quantized by; None for plain ones.

    Raises:
        UserError: quantized weights cannot be turned back.
    """
    from dynarank.pretrained.quantization import dequantize, is_quantized, stored_quantization

    method = None
    if is_quantized(pretrained.model):
        method = stored_quantization(pretrained.model.config) or "quantized"
        dequantize(pretrained.model, pretrained.source.path)
    pretrained.model.float()
    return method


def moved(model: Any, place: Any) -> Any:
    """Return a model on a device; one that is there already stays, for 8-bit ones never move."""
    return model if model.device.type == torch.device(place).type else model.to(place)


def fold_if_exact(model: Any) -> Any:
    """Return a model that predicts as it was trained, with its update merged where that is exact.

    Merged into weights narrower than float32, most of an update would be rounded away. There the
    adapter stays beside the weights.
    """
    import peft

    from dynarank.pretrained.quantization import is_quantized

    if not isinstance(model, peft.PeftModel) or model.active_peft_config.is_prompt_learning:
        return model
    base = model.get_base_model()
    if base.dtype == torch.float32 and not is_quantized(base):
        return model.merge_and_unload()
    # PEFT has put its layers into the base model, so that it holds the adapter.
    return model.get_base_model()
