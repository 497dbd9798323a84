"""What turns a task's inputs into numbers: a tokenizer for texts, an image processor for images.

A task names its kind (`Task.processor`). To add a kind (speech, images with texts), add an entry to
`PROCESSORS`; nothing else in the house knows what the inputs are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dynarank.errors import UserError, kind_and_first_line
from dynarank.pretrained.agreement import agree, check_tokenizer
from dynarank.pretrained.digests import DIGITS, tokenizer_digest
from dynarank.pretrained.hub import ModelConfig, Source
from dynarank.pretrained.loading import load_auto

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A wide and a tall one: what keeps an image's proportions shows by them.
PROBE_SIZES = ((37, 61), (80, 48))
"""Heights and widths of blank images that are processed to see what becomes of any."""


@dataclass(frozen=True, kw_only=True)
class Processor:
    """What is done with one kind of processor."""

    load: Callable[[ModelConfig, Source], Any]
    """Load it from where the model is. Raises `UserError`."""
    agree: Callable[[str, Any, PreTrainedModel, str], None]
    """Check it and a model against each other. Arguments: the setting that the model came from, the
    processor, the model, and transformers' auto class of the model. Raises `UserError`."""
    digest: Callable[[Any], str]
    """Return a digest of what it does, which stays the same when it is saved and loaded again."""
    save: Callable[[Any, Path], None]
    """Save it into a folder."""


def load_tokenizer(config: ModelConfig, source: Source) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer, with a padding token.

    Raises:
        UserError: there is none, or it has no vocabulary or no token to pad with.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = load_auto(AutoTokenizer, "tokenizer", config, source)
    check_tokenizer(f"model.path = {config.path}", tokenizer)
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer without the padding and the truncation of its last call.

    A tokenizer of the tokenizers library keeps them, and writes them into tokenizer.json.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        tokenizer.save_pretrained(folder)
        return
    padding, truncation = backend.padding, backend.truncation
    backend.no_padding()
    backend.no_truncation()
    tokenizer.save_pretrained(folder)
    if padding is not None:
        backend.enable_padding(**padding)
    if truncation is not None:
        backend.enable_truncation(**truncation)


def load_image_processor(config: ModelConfig, source: Source) -> Any:
    """Return the model's image processor. Raises `UserError` where there is none."""
    from transformers import AutoImageProcessor

    # By pillow on every machine: torchvision, where it is installed, resizes to other values.
    return load_auto(AutoImageProcessor, "image processor", config, source, backend="pil")


def agree_on_images(field: str, processor: Any, model: PreTrainedModel, auto_class: str) -> None:
    """Raise `UserError` unless images of any size come out alike, and the model takes them."""
    from PIL import Image

    mode = image_mode(model)
    blank = [Image.new(mode, (width, height)) for height, width in PROBE_SIZES]
    try:
        # One at a time: images that come out in different sizes do not stack.
        first, second = (processor(images=[image], return_tensors="pt") for image in blank)
    except Exception as error:  # wrong settings raise any kind
        raise UserError(
            f"{field}: its image processor cannot read an image of the mode {mode}: "
            f"{kind_and_first_line(error)}. Mend preprocessor_config.json"
        ) from None
    pixels = first["pixel_values"]
    shapes = [tuple(part["pixel_values"].shape[1:]) for part in (first, second)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{field}: its image processor makes images of different sizes, {shapes[0]} and "
            f"{shapes[1]}, which no batch can hold. Set size to a height and a width, or "
            "do_center_crop, in preprocessor_config.json"
        )
    try:
        with torch.no_grad():
            model(pixel_values=pixels.to(model.dtype))
    except Exception as error:  # the model's own code, on sizes that it was not made for
        raise UserError(
            f"{field}: its image processor makes images of the size {shapes[0]}, which the model "
            f"does not take: {kind_and_first_line(error)}. Take the processor that the model was "
            "trained with, or mend preprocessor_config.json"
        ) from None


def image_mode(model: PreTrainedModel) -> str:
    """Return the mode, as pillow names it, of the images that a model reads: RGB, or L for grey."""
    settings: Any = model.config
    # CLIP's kind keeps the settings of its part for images apart.
    vision = getattr(settings, "vision_config", settings)
    return "L" if getattr(vision, "num_channels", 3) == 1 else "RGB"


def image_processor_digest(processor: Any) -> str:
    """Return a digest of an image processor's settings."""
    settings = {name: value for name, value in processor.to_dict().items() if value is not None}
    # Some settings are objects, as a way of resampling.
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _save(processor: Any, folder: Path) -> None:
    processor.save_pretrained(folder)


PROCESSORS = {
    "tokenizer": Processor(
        load=load_tokenizer, agree=agree, digest=tokenizer_digest, save=save_tokenizer
    ),
    "image_processor": Processor(
        load=load_image_processor,
        agree=agree_on_images,
        digest=image_processor_digest,
        save=_save,
    ),
}
"""By the name that a task gives (`Task.processor`)."""
