"""What becomes of base weights when a run is loaded: widened, moved, an update added."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dynarank.adapters.linears import weight_holders
from dynarank.errors import UserError

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
    # By type alone, because to torch "cuda" and "cuda:0" differ.
    return model if model.device.type == torch.device(place).type else model.to(place)


def fold_if_exact(model: Any) -> Any:
    """Return a model that predicts as it was trained, with its update merged where that is exact.

    Merged into weights narrower than float32, most of an update would be rounded away, and merged
    into a weight that another module shares, it would change that one too. There the adapter stays
    beside the weights.
    """
    import peft

    from dynarank.pretrained.quantization import is_quantized

    # Prompts change no weight: PEFT's wrapper puts them before the input, and has to stay.
    if not isinstance(model, peft.PeftModel) or model.active_peft_config.is_prompt_learning:
        return model
    base = model.get_base_model()
    if base.dtype == torch.float32 and not is_quantized(base) and not shared_weights(model):
        return model.merge_and_unload()
    # PEFT has put its layers into the base model, so that it holds the adapter.
    return model.get_base_model()


def shared_weights(model: Any) -> dict[str, str]:
    """Return which adapted layers share their weight, each with a module that shares it.

    The names are those in the plain model. `lm_head` often shares the weight of the embeddings.

    Args:
        model: a peft.PeftModel.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    holders = weight_holders(base)
    shared: dict[str, str] = {}
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            own = f"{name}.base_layer"
            for other in holders.get(id(module.get_base_layer().weight), []):
                if other != own:
                    shared.setdefault(name, other.removesuffix(".base_layer"))
    return shared


def untie_to_merge(model: Any) -> list[str]:
    """Give an adapted `lm_head` that shares the embeddings' weight a weight of its own.

    Its configuration says so, so that the merged model is loaded as it was saved.

    Args:
        model: a peft.PeftModel.

    Returns:
        what the user should know of it, a sentence each.

    Raises:
        UserError: other weights are shared, or the model computes otherwise where they are not.
    """
    shared = shared_weights(model)
    if not shared:
        return []
    base = model.get_base_model()
    head = base.get_output_embeddings()
    for name, other in shared.items():
        is_tied_head = (
            base.get_submodule(name) is head
            and base.get_submodule(other) is base.get_input_embeddings()
        )
        # T5 scales what goes into a tied head, for one, and BART ties two more embeddings.
        if not is_tied_head or base.config.is_encoder_decoder:
            raise UserError(
                f"--merged: {name} was trained, and shares its weight with {other}, which the "
                "update would change too. Use the adapter beside its base model, or train without "
                f"{name} among model.targets"
            )
    linear = head.get_base_layer()
    linear.weight = torch.nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
    base.config.tie_word_embeddings = False
    return [
        f"{next(iter(shared))} has a weight of its own in the merged model, where the base shares "
        "it with the embeddings: the model is larger by that weight"
    ]
