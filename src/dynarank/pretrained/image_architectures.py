"""What is known of the architectures that read images; a part of `architectures.ARCHITECTURES`."""

from __future__ import annotations

from dynarank.pretrained.architecture import Architecture


def _like_vit(
    title: str,
    targets: tuple[str, ...],
    attention_output: str,
    feedforward_output: str,
    body: str | None = None,
) -> Architecture:
    return Architecture(
        title=title,
        kind="image",
        targets=targets,
        attention_outputs=(attention_output,),
        feedforward_outputs=(feedforward_output,),
        takes_prompt=False,
        body=body,
    )


IMAGE_ARCHITECTURES: dict[str, Architecture] = {}
"""By the `model_type` of a model's config.json."""
