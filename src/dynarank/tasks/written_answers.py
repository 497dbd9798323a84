"""What a language model writes after a prompt: prompts, their room, and the writing."""

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


PROMPT_IDS = "prompt_ids"
"""Column of features: the tokens of a row up to where its last answer begins."""


def prompt_batch(features: Sequence[dict[str, Any]]) -> Tensor:
    """Return the prompts of a batch, (batch, longest), `IGNORED` after them."""
    longest = max(len(feature[PROMPT_IDS]) for feature in features)
    tokens = torch.full((len(features), longest), IGNORED)
    for row, feature in enumerate(features):
        tokens[row, : len(feature[PROMPT_IDS])] = torch.tensor(feature[PROMPT_IDS])
    return tokens


def prompts_of(batch: Batch) -> list[list[int]]:
    """Return the tokens of each row's prompt."""
    prompts = []
    for row in batch[PROMPT_IDS]:
        ids: list[int] = row[row != IGNORED].tolist()
        prompts.append(ids)
    return prompts


def check_room(model: Any, features: Dataset, max_answer: int) -> None:
    """Refuse a row that the model has no positions for together with an answer.

    Args:
        features: of the rows, with their prompts.
        max_answer: tokens of an answer at most.

    Raises:
        UserError: some rows are too long. The message has the number of the longest.
    """
    room = positions(model)
    if room is None:
        return
    # The vectors of prompt tuning take positions, too.
    room -= prompt_vectors(model)
    lengths = [len(ids) for ids in features[PROMPT_IDS][:]]
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
    """Return what the model writes after each prompt, greedily.

    Prompts are padded on the left, so that each text goes on from its own last token.

    Args:
        prompts: the tokens of each.
        ends: tokens that end an answer.
        max_answer: tokens of an answer at most.
    """
    longest = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id
    device = next(model.parameters()).device
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        begin = longest - len(prompt)
        ids[row, begin:] = torch.tensor(prompt)
        mask[row, begin:] = 1
    tokens: Tensor = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=max_answer,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=pad,
    )
    # `generate` gives the prompts back, before what it wrote.
    texts = tokenizer.batch_decode(tokens[:, longest:].cpu(), skip_special_tokens=True)
    return [text.strip() for text in texts]
