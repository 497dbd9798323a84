"""The likeliest of given answers, as lm-evaluation-harness scores multiple choice.

The score of an answer is the sum of its tokens' log-likelihoods behind the prompt, its end token
not among them; `_norm` divides it by the answer's bytes. An answer's tokens are those that the
prompt and it have together, behind as many as the prompt has alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynarank.tasks.token_loss import IGNORED, token_terms

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHOICE_IDS, CHOICE_BYTES = "choice_ids", "choice_bytes"
"""Columns of features: the tokens of each choice, and the length of its text in bytes."""


def choice_features(
    tokenizer: PreTrainedTokenizerBase, prompt: str, choices: Sequence[str]
) -> dict[str, list[Any]]:
    """Return the tokens and the bytes of each choice behind a prompt."""
    before = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids = []
    for choice in choices:
        ids.append(tokenizer(prompt + choice, add_special_tokens=False)["input_ids"][before:])
    return {CHOICE_IDS: ids, CHOICE_BYTES: [len(choice.encode()) for choice in choices]}


def choice_batch(features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Return the choices of a batch: tokens (batch, choices, longest), `IGNORED` where none is.

    A row with fewer choices than others has zero bytes for those that are missing.
    """
    most = max(len(feature[CHOICE_IDS]) for feature in features)
    longest = max(len(ids) for feature in features for ids in feature[CHOICE_IDS])
    tokens = torch.full((len(features), most, longest), IGNORED)
    lengths = torch.zeros(len(features), most, dtype=torch.long)
    for row, feature in enumerate(features):
        for place, ids in enumerate(feature[CHOICE_IDS]):
            tokens[row, place, : len(ids)] = torch.tensor(ids)
        lengths[row, : len(feature[CHOICE_BYTES])] = torch.tensor(feature[CHOICE_BYTES])
    return {CHOICE_IDS: tokens, CHOICE_BYTES: lengths}


def score_choices(
    model: Any, prompts: Sequence[Sequence[int]], batch: dict[str, Tensor], pad_token: int
) -> list[tuple[int, int]]:
    """Return which choice each row takes: by the sum, and by the sum for each byte.

    Args:
        prompts: the tokens before the choices, by row.
        batch: what `choice_batch` returned.
    """
    tokens, lengths = batch[CHOICE_IDS].tolist(), batch[CHOICE_BYTES].tolist()
    chosen = []
    for prompt, row_tokens, row_bytes in zip(prompts, tokens, lengths, strict=True):
        answers = []
        for ids, size in zip(row_tokens, row_bytes, strict=True):
            if size:
                answers.append([token for token in ids if token != IGNORED])
        sums = _sums(model, prompt, answers, pad_token, batch[CHOICE_IDS].device)
        sizes = torch.tensor(row_bytes[: len(answers)], dtype=torch.float64)
        chosen.append((int(sums.argmax()), int((sums / sizes).argmax())))
    return chosen


def _sums(
    model: Any,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    pad_token: int,
    device: torch.device,
) -> Tensor:
    """Return the log-likelihood of each answer behind a prompt, (answers) float64."""
    longest = len(prompt) + max(len(answer) for answer in answers)
    ids, mask, labels = [], [], []
    for answer in answers:
        missing = longest - len(prompt) - len(answer)
        ids.append([*prompt, *answer, *[pad_token] * missing])
        mask.append([1] * (longest - missing) + [0] * missing)
        labels.append([*[IGNORED] * len(prompt), *answer, *[IGNORED] * missing])
    inputs = {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
    terms = token_terms(model, inputs, torch.tensor(labels, device=device))
    sums = torch.zeros(len(answers), dtype=torch.float64)
    return sums.index_add(0, terms.rows.cpu(), terms.log_likelihood.double().cpu())


def choice_scores(
    names: Sequence[str], chosen: Sequence[tuple[int, int]], right: Sequence[int]
) -> dict[str, float]:
    """Return the shares of rows whose choice is the right one, by name."""
    scores = {}
    for position, name in enumerate(("choice_accuracy", "choice_accuracy_norm")):
        if name in names:
            hits = [pair[position] == one for pair, one in zip(chosen, right, strict=True)]
            scores[name] = sum(hits) / len(hits)
    return scores
