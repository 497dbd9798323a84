"""What is known of the architectures that read images; a part of `architectures.ARCHITECTURES`."""

from __future__ import annotations

from dynarank.pretrained.architecture import Architecture

# transformers has given most of these models new names of layers; both are known.
_ATTENTION = (r".*\.(q_proj|query)", r".*\.(k_proj|key)", r".*\.(v_proj|value)")
_ATTENTION_OUTPUT = r".*\.(attention\.o_proj|attention\.output\.dense)"
# weights_in, weights_out: DINOv2's gated feed-forward.
_FEEDFORWARD = r".*\.(fc1|intermediate\.dense|weights_in|gate_proj|up_proj)"
# The number of the layer keeps `attention.output.dense` out.
_FEEDFORWARD_OUTPUT = r".*\.\d+\.(mlp\.fc2|output\.dense|mlp\.weights_out|mlp\.down_proj)"
_TOWER_ATTENTION = r".*\.layers\.\d+\.self_attn\.(q|k|v)_proj"
_TOWER_ATTENTION_OUTPUT = r".*\.layers\.\d+\.self_attn\.out_proj"
_TOWER_FEEDFORWARD_OUTPUT = r".*\.layers\.\d+\.mlp\.fc2"


def _like_vit(title: str) -> Architecture:
    return Architecture(
        title=title,
        kind="image",
        targets=(*_ATTENTION, _ATTENTION_OUTPUT, _FEEDFORWARD, _FEEDFORWARD_OUTPUT),
        attention_outputs=(_ATTENTION_OUTPUT,),
        feedforward_outputs=(_FEEDFORWARD_OUTPUT,),
        takes_prompt=False,
    )


def _vision_tower(title: str) -> Architecture:
    """Return the entry of a model of images and texts, of which the images' part classifies.

    Its pooling head, which SigLIP has, is left out: the classifier does not read it.
    """
    return Architecture(
        title=title,
        kind="image",
        targets=(
            _TOWER_ATTENTION,
            _TOWER_ATTENTION_OUTPUT,
            r".*\.layers\.\d+\.mlp\.fc1",
            _TOWER_FEEDFORWARD_OUTPUT,
        ),
        attention_outputs=(_TOWER_ATTENTION_OUTPUT,),
        feedforward_outputs=(_TOWER_FEEDFORWARD_OUTPUT,),
        takes_prompt=False,
        body="vision_model",
    )


IMAGE_ARCHITECTURES: dict[str, Architecture] = {
    "vit": _like_vit("ViT"),
    "deit": _like_vit("DeiT"),
    "beit": _like_vit("BEiT"),
    "dinov2": _like_vit("DINOv2"),
    "dinov2_with_registers": _like_vit("DINOv2 with registers"),
    "swin": _like_vit("Swin"),
    "swinv2": _like_vit("Swin v2"),
    "clip": _vision_tower("CLIP"),
    "siglip": _vision_tower("SigLIP"),
    "siglip2": _vision_tower("SigLIP 2"),
}
"""By the `model_type` of a model's config.json."""
