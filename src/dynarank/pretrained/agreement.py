"""After loading, tokenizer, model and adapter are checked against each other.

Each rule is here because a pair that breaks it either fails inside the model's code, or predicts
something else for a row when other rows stand beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from dynarank.errors import UserError
from dynarank.pretrained.architectures import kind_of_model
from dynarank.pretrained.digests import same_weights
from dynarank.run_folder import ORIGIN

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dynarank.pretrained.models import Pretrained

log = logging.getLogger(__name__)

HEAD_PREFIXES = ("base_model.model.", "base_model.", "")
"""What stands before a parameter's name in an adapter's file: PEFT's, its prompts', and ours."""
BLANKS = " \N{LOWER ONE EIGHTH BLOCK}\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
"""Signs that stand for a blank in vocabularies: a tokenizer without its file has them alone."""
PADDED_ON_THE_LEFT = ("xlnet",)
"""Architectures whose task head reads the last position, so that nothing may be padded there."""


def check_tokenizer(field: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer a padding token where it has none.

    Args:
        field: the setting and its value that the tokenizer came from, for errors.

    Raises:
        UserError: the tokenizer has no vocabulary, or no token to pad with.
    """
    ordinary = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if not any(token.strip(BLANKS) for token in ordinary):
        raise UserError(
            f"{field}: its tokenizer has no vocabulary, only {len(tokenizer)} special tokens. "
            "A file is missing in the folder, as tokenizer.json or vocab.txt: put it back"
        )
    if tokenizer.pad_token is None:
        # Many decoders have none. Attention and loss leave padding out, whatever token it is.
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UserError(
            f"{field}: its tokenizer has neither a padding token nor an end-of-text token, so that "
            "texts cannot be brought to one length. Name one of its tokens as pad_token in "
            "tokenizer_config.json"
        )


def agree(
    field: str,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    auto_class: str,
) -> None:
    """Check a tokenizer and a model against each other, and set what one must know of the other.

    It is the check of texts; `processors.PROCESSORS` has those of other inputs.

    Args:
        field: the setting and its value that the model came from, for errors.
        auto_class: transformers' auto class of the model.

    Raises:
        UserError: they do not fit together.
    """
    _check_embedding(field, tokenizer, model)
    _set_padding(tokenizer, model)
    classifies = auto_class == "AutoModelForSequenceClassification"
    if classifies and kind_of_model(model.config) == "encoder-decoder":
        _check_end_of_text(field, tokenizer, model)


def _check_embedding(
    field: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    """Raise `UserError` where a token has no embedding."""
    embedding: Any = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        return
    vocabulary = tokenizer.get_vocab()
    token = max(vocabulary, key=vocabulary.__getitem__)
    if vocabulary[token] >= embedding.num_embeddings:
        raise UserError(
            f"{field}: the tokenizer has the token {token!r} with the number {vocabulary[token]}, "
            f"and the model embeds only the numbers below {embedding.num_embeddings}. Take the "
            "tokenizer that the model was trained with, or name one of its tokens as pad_token in "
            "place of an added one"
        )


def _set_padding(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Let the model know the tokenizer's padding, and pad where the model does not read."""
    # Models that count positions from the first token would see padding on the left as text.
    left = model.config.model_type in PADDED_ON_THE_LEFT
    tokenizer.padding_side = "left" if left else "right"
    number = tokenizer.pad_token_id
    settings = model.config.get_text_config()
    # A decoder's task head looks for the last token that is no padding. In the other kinds this
    # setting also places the positions, and the attention mask hides the padding.
    if kind_of_model(model.config) == "decoder" or settings.pad_token_id is None:
        if settings.pad_token_id not in (None, number):
            log.warning(
                "the tokenizer pads with %r (number %d), and config.json says %s: %d is used",
                tokenizer.pad_token,
                number,
                settings.pad_token_id,
                number,
            )
        settings.pad_token_id = number
        # Models of several parts keep the text's settings in an object of their own.
        model.config.pad_token_id = number
    # A generated text that is shorter than others in its batch is filled up with this token.
    generation: Any = getattr(model, "generation_config", None)
    if generation is not None:
        generation.pad_token_id = number


def _check_end_of_text(
    field: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    """Raise `UserError` where a text's end, which the task head reads, cannot be told.

    The head of BART's and T5's kind takes the position of the last end-of-text token, and wants
    equally many of them in each text.
    """
    end = model.config.eos_token_id
    if tokenizer.pad_token_id == end:
        raise UserError(
            f"{field}: the tokenizer pads with {tokenizer.pad_token!r}, which also ends a text, "
            "and the task head of this model reads a text at its end. Name another of its tokens "
            "as pad_token in tokenizer_config.json"
        )
    bare = tokenizer.encode("text", add_special_tokens=False)
    if tokenizer.encode("text").count(end) != bare.count(end) + 1:
        raise UserError(
            f"{field}: the task head of this model reads a text at its end-of-text token (number "
            f"{end}), which the tokenizer does not write behind a text. Take the tokenizer that "
            "the model was trained with"
        )


def disable_layerdrop(model: nn.Module) -> None:
    """Let no layer be skipped at random, with a warning where one would be.

    The adapters of a skipped layer have no gradient: their importance is not known, and several
    processes wait for each other for ever.
    """
    dropping = [module for module in model.modules() if getattr(module, "layerdrop", 0)]
    for module in dropping:
        module.layerdrop = 0.0  # type: ignore[assignment]
    if dropping:
        log.warning(
            "the layerdrop of config.json, which skips layers at random, is taken as 0: the "
            "adapters of a skipped layer would have no gradient"
        )


def check_head(where: str, pretrained: Pretrained, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check the trained task head that lies in an adapter's file.

    Args:
        where: the adapter, for errors.
        pretrained: the base model, with the head of the recorded task.
        shapes: shapes of the adapter's tensors, by their names in the file.

    Raises:
        UserError: the head is missing, or was trained for another number of labels.
    """
    in_model = {}
    for name, parameter in pretrained.model.named_parameters():
        if any(name.startswith(f"{module}.") for module in pretrained.head):
            in_model[name] = parameter
    for name, parameter in in_model.items():
        keys = [prefix + name for prefix in HEAD_PREFIXES if prefix + name in shapes]
        if not keys:
            raise UserError(
                f"{where}: holds no {name}, which is part of the trained task head. Export the "
                "run again"
            )
        shape = tuple(shapes[keys[0]])
        if shape != tuple(parameter.shape):
            raise UserError(
                f"{where}: {name} has the shape {shape}, and the task in {ORIGIN} wants "
                f"{tuple(parameter.shape)}. Put the labels and the base back that it was trained "
                "with: task.labels there, and --base"
            )


def tensor_shapes(weights: Path) -> dict[str, list[int]]:
    """Return the shapes of a safetensors file's tensors, by name."""
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as file:
        # The open file has keys(), but is no mapping and cannot be gone through itself.
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


@dataclass(frozen=True)
class RecordedDigests:
    """What was recorded beside an adapter of the base weights and the tokenizer it depends on."""

    base_weights: str | None
    tokenizer: str | None
    comparable: bool
    """Whether the same version of transformers computed them."""

    @classmethod
    def read(cls, record: Mapping[str, Any], transformers_version: str | None) -> RecordedDigests:
        """Read them from an adapter's record; older records hold none, and nothing is compared."""
        digests, versions = record.get("digests"), record.get("versions")
        digests = digests if isinstance(digests, dict) else {}
        versions = versions if isinstance(versions, dict) else {}
        return cls(
            base_weights=digests.get("base_weights"),
            tokenizer=digests.get("tokenizer"),
            comparable=versions.get("transformers") == transformers_version,
        )


def check_tokenizer_digest(where: str, recorded: RecordedDigests, present: str) -> None:
    """Raise `UserError` where an adapter's tokenizer is not the one of its training.

    Args:
        where: the adapter, for errors.
        present: the digest of the tokenizer (or of what else reads the inputs) as it is now.
    """
    if recorded.tokenizer in (None, present):
        return
    _refuse_or_warn(
        f"{where}: its tokenizer is not the one that it was trained with (recorded in {ORIGIN} as "
        f"{recorded.tokenizer}). Put the files of that tokenizer back, or export the run again",
        recorded.comparable,
    )


def check_weights_digest(where: str, recorded: RecordedDigests, pretrained: Pretrained) -> None:
    """Raise `UserError` where an adapter's base has other weights than in its training.

    Args:
        where: the adapter, for errors.
    """
    known = recorded.base_weights
    if known is None or same_weights(known, pretrained.model, pretrained.head):
        return
    _refuse_or_warn(
        f"{where} does not belong to {pretrained.source.path}: it was trained on other weights, so "
        "that its predictions would be wrong. Name its base by --base; to use this one all the "
        f"same, take base_weights out of {ORIGIN}",
        recorded.comparable,
    )


def _refuse_or_warn(message: str, comparable: bool) -> None:
    """Raise `UserError`; where versions differ, so that digests may too, log a warning."""
    if comparable:
        raise UserError(message)
    log.warning("%s (transformers has another version now, which may be the reason)", message)
