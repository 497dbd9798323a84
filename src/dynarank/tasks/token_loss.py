"""The loss of a language model without the scores of a whole vocabulary for every token.

Legend: n tokens that are predicted, d the size of the hidden states, V words of the vocabulary.
The scores of all tokens, (n, V), are the largest tensor of a step: 2,048 tokens of a vocabulary of
128,000 take 1 GB in float32, and as much for their gradient. Here they are made for a part of the
tokens at a time, and made again in the backward pass. Loss and gradient are those of the whole.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dynarank.errors import first_line
from dynarank.pretrained.architectures import ARCHITECTURES

log = logging.getLogger(__name__)

IGNORED = -100
"""The label of positions that the loss leaves out."""
CHUNK = 1024
"""Tokens whose scores are made at a time."""
PROBED = 8
"""Tokens on which a model's output layer is tried."""
TRIED = "_dynarank_has_plain_head"
"""The attribute of a model that keeps what came of it."""
HEAD_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "mup_width_multiplier")
"""Settings of models that change the scores after the output layer."""


class TokenTerms(NamedTuple):
    """What is known of each predicted token."""

    rows: Tensor
    """The row of the batch that it belongs to, (n)."""
    log_likelihood: Tensor
    """In nats, (n) float32."""
    correct: Tensor
    """Whether it is the likeliest, (n) bool."""


def has_plain_head(model: Any) -> bool:
    """Return whether a model's scores are its hidden states times its output layer, and no more.

    Of an architecture that the table does not know, it is tried once.
    """
    head = model.get_output_embeddings()
    # transformers gives the model itself as `base_model` where its body does not stand apart.
    changed = any(getattr(model.config, name, None) not in (None, 1.0) for name in HEAD_SETTINGS)
    if not isinstance(head, nn.Linear) or model.base_model is model or changed:
        return False
    if model.config.model_type in ARCHITECTURES:
        return True
    if not hasattr(model, TRIED):
        setattr(model, TRIED, _gives_its_heads_scores(model))
    return bool(getattr(model, TRIED))


@torch.no_grad()
def _gives_its_heads_scores(model: Any) -> bool:
    """Return whether a model's scores of a few tokens are what its output layer makes of its body.

    Others cap or multiply the scores, or have one more layer before the output layer.
    """
    words = model.config.get_text_config().vocab_size
    tokens = torch.arange(1, 1 + PROBED) * (words - 1) // PROBED  # from all of the vocabulary
    device = next(model.parameters()).device
    inputs = {"input_ids": tokens[None].to(device), "use_cache": False}
    modes = {module: module.training for module in model.modules()}
    model.eval()  # dropout would draw, and differ
    try:
        scores = model(**inputs).logits.float()
        from_head = model.get_output_embeddings()(model.base_model(**inputs)[0]).float()
        alike = scores.shape == from_head.shape and torch.allclose(scores, from_head, rtol=1e-3)
    except Exception as error:  # a model's own code, which may want other inputs
        log.debug("the output layer cannot be tried: %s", first_line(error))
        alike = False
    finally:
        for module, mode in modes.items():
            module.training = mode
    return alike


def predicted_positions(labels: Tensor) -> Tensor:
    """Return at which positions the next token is predicted, (batch, tokens - 1) bool."""
    return labels[:, 1:] != IGNORED


def chunked_sum(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the cross-entropies of tokens, a scalar.

    Args:
        head: the output layer.
        hidden: hidden states, (n, d).
        labels: the tokens, (n).
    """

    def part(states: Tensor, tokens: Tensor) -> Tensor:
        return functional.cross_entropy(head(states).float(), tokens, reduction="sum")

    total = hidden.new_zeros((), dtype=torch.float32)
    for states, tokens in zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True):
        total = total + checkpoint(part, states, tokens, use_reentrant=False)
    return total


def lighten_loss(model: Any) -> None:
    """Have a model compute its loss in parts where it is given labels, and all else as before.

    A model whose scores are more than hidden states times the output layer is left as it is.
    """
    if not has_plain_head(model):
        return
    plain_forward = model.forward

    def forward(*arguments: Any, labels: Tensor | None = None, **inputs: Any) -> Any:
        from transformers.modeling_outputs import CausalLMOutput

        # Generation gives no labels. What comes without a name cannot be told apart here.
        if labels is None or arguments:
            return plain_forward(*arguments, labels=labels, **inputs)
        hidden = model.base_model(**inputs)[0]  # (batch, tokens, d)
        chosen = predicted_positions(labels)
        tokens = labels[:, 1:][chosen]
        # The state before a token predicts it: (n, d) beside tokens (n).
        total = chunked_sum(model.get_output_embeddings(), hidden[:, :-1][chosen], tokens)
        # Without logits: not to have them all at once is what this is for.
        return CausalLMOutput(loss=total / chosen.sum().clamp(min=1))

    # Put on the object, for its class, its parameters' names and what is saved stay the same.
    model.forward = forward


@torch.no_grad()
def token_terms(model: Any, inputs: dict[str, Tensor], labels: Tensor) -> TokenTerms:
    """Return how likely each labelled token of a batch is, given those before it.

    Args:
        model: transformers' model, or PEFT's around it.
        inputs: what the model takes, without labels.
        labels: the tokens, (batch, tokens), `IGNORED` where none is predicted.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    chosen = predicted_positions(labels)
    tokens = labels[:, 1:][chosen]  # (n)
    if has_plain_head(inner):
        hidden = inner.base_model(**inputs)[0]  # (batch, tokens, d)
        hidden = hidden[:, :-1][chosen]  # (n, d)
        head = inner.get_output_embeddings()
        # One part at a time, when it is asked for: all of them together may not fit.
        chunks_of_logits = (head(part).float() for part in hidden.split(CHUNK))
    else:
        logits = model(**inputs).logits[:, :-1][chosen].float()  # (n, vocabulary)
        chunks_of_logits = iter(logits.split(CHUNK))
    likelihoods, correct = [], []
    for logits_of_chunk, tokens_of_chunk in zip(chunks_of_logits, tokens.split(CHUNK), strict=True):
        losses = functional.cross_entropy(logits_of_chunk, tokens_of_chunk, reduction="none")
        likelihoods.append(-losses)
        correct.append(logits_of_chunk.argmax(-1) == tokens_of_chunk)
    rows = chosen.nonzero()[:, 0]
    return TokenTerms(rows=rows, log_likelihood=torch.cat(likelihoods), correct=torch.cat(correct))
