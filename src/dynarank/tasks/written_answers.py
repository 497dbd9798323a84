"""What a language model writes behind a prompt: where prompts end, their room, and the writing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynarank.errors import UserError
from dynarank.pretrained.models import positions, prompt_vectors
from dynarank.tasks.base import Batch
from dynarank.tasks.token_loss import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset


def prompt_length(tokens: int, labels: Sequence[int]) -> int:
    """Return how many tokens of a row stand before its last answer; all of them without one.

    Args:
        tokens: tokens of the row, without padding.
        labels: its labels, and perhaps those of padding behind them.
    """
    answered = [place for place in range(tokens) if labels[place] != IGNORED]
    if not answered:
        return tokens
    end = answered[-1]
    while end > 0 and labels[end - 1] != IGNORED:
        end -= 1
    return end


def prompts_of(batch: Batch) -> list[list[int]]:
    """Return the tokens of each row of a batch up to its last answer."""
    parts = (batch[name].tolist() for name in ("input_ids", "attention_mask", "labels"))
    return [
        ids[: prompt_length(sum(mask), labels)] for ids, mask, labels in zip(*parts, strict=True)
    ]


def check_room(model: Any, features: Dataset, max_answer: int) -> None:
    """Refuse a row that the model has no positions for together with an answer.

    Args:
        features: `input_ids` and `labels` of the rows.
        max_answer: tokens of an answer at most.

    Raises:
        UserError: some rows are too long. The message has the number of the longest.
    """
    room = positions(model)
    if room is None:
        return
    room -= prompt_vectors(model)
    rows = zip(features["input_ids"][:], features["labels"][:], strict=True)
    lengths = [prompt_length(len(ids), labels) for ids, labels in rows]
    longest = max(lengths)
    if longest + max_answer <= room:
        return
    remedy = "Shorten or drop the row"
    if longest < room:
        remedy += f", or give task.max_answer={room - longest} (predict: --max-answer)"
    raise UserError(
        f"the conversations, row {lengths.index(longest)}: the prompt has {longest} tokens, and an "
        f"answer up to task.max_answer = {max_answer}, but the model has {room} positions for "
        f"both. {remedy}"
    )


def write_answers(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], ends: list[int], max_answer: int
) -> list[str]:
    """Return what the model writes behind each prompt, greedily.

    Prompts are padded on the left, so that each text goes on from its own last token.

    Args:
        prompts: the tokens of each.
        ends: tokens that end an answer.
        max_answer: tokens of an answer at most.
    """
    longest = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    tokens: Tensor = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=max_answer,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=pad,
    )
    texts = tokenizer.batch_decode(tokens[:, longest:].cpu(), skip_special_tokens=True)
    return [text.strip() for text in texts]
