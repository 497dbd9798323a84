"""Conversations as text by a tokenizer's chat template, and where the answers stand in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynarank.errors import UserError, first_line
from dynarank.tasks.conversations import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For tokenizers that bring no template: 'User: ...' and 'Assistant: ...' on lines of their own.

A prompt ends before the space: tokenizers join it to the word after it, which is the answer's.
"""
Span = tuple[int, int]
"""First character, and the one after the last."""


def set_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer the default template, if it has none. It is saved with the adapter."""
    if tokenizer.chat_template is None:
        tokenizer.chat_template = DEFAULT_TEMPLATE


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], ask: bool = False
) -> str:
    """Return a conversation as text.

    Args:
        ask: whether it ends with what begins an answer.

    Raises:
        UserError: the template refuses these messages (two of the user's in a row, say).
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=ask
        )
    except Exception as error:  # templates raise what they like
        raise UserError(f"the chat template refuses a conversation: {first_line(error)}") from None
    return str(text)


def render_with_answers(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> tuple[str, list[Span]]:
    """Return a conversation as text, and where its answers stand, each with its end token.

    An answer is what the template adds to the conversation before it. Templates that write earlier
    answers otherwise than the last (leaving out their thoughts) are taken from TRL, where it has a
    form of them for training.

    Raises:
        UserError: the template changes what came before, and there is no other form of it.
    """
    whole = render(tokenizer, messages)
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, messages[:number], ask=True)
        after = render(tokenizer, messages[: number + 1])
        if not after.startswith(before):  # it asks otherwise than it writes answers
            before = render(tokenizer, messages[:number])
        # White space at the end may differ once another message follows.
        if not (after.startswith(before) and whole.startswith(after.rstrip())):
            raise UserError(
                "the chat template writes earlier messages otherwise once others follow, so that "
                "the answers cannot be told from the rest. Give the tokenizer a chat_template for "
                "training"
            )
        spans.append((len(before), len(after)))
    return whole, spans


def use_training_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Take TRL's form for training of a tokenizer's template, where TRL is there and has one."""
    try:
        from trl.chat_template_utils import get_training_chat_template
    except ImportError:
        return
    try:
        template = get_training_chat_template(tokenizer)
    except ValueError:  # it is not one of those that TRL knows
        return
    if template is not None:
        tokenizer.chat_template = template


def labels_in_spans(
    offsets: Sequence[Span], tokens: Sequence[int], spans: Sequence[Span], ignored: int
) -> list[int]:
    """Return the tokens that begin inside a span, and `ignored` for the others."""
    labels = []
    for (start, end), token in zip(offsets, tokens, strict=True):
        # A token of no characters is one that the tokenizer adds, and no part of an answer.
        has_characters = end > start
        is_inside = any(first <= start < last for first, last in spans)
        labels.append(token if has_characters and is_inside else ignored)
    return labels


def around_an_answer(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what the template puts between a prompt and an answer, and after the answer."""
    # A word that no template holds itself: `<bot>` has a b.
    answer = "qxzq"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    text, spans = render_with_answers(tokenizer, messages)
    first, last = spans[-1]
    between, _, after = text[first:last].partition(answer)
    return between, after


def end_tokens(tokenizer: PreTrainedTokenizerBase, model: Any, after: str) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, the model's, and the template's.

    Args:
        after: what the template puts after an answer.
    """
    found = {tokenizer.eos_token_id}
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found |= set(configured) if isinstance(configured, list) else {configured}
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    # What follows an answer may also be a line break, which answers hold themselves.
    if ids and ids[0] in tokenizer.all_special_ids:
        found.add(ids[0])
    return sorted(token for token in found if token is not None)
