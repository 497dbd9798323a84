"""The likeliest of given answers, as lm-evaluation-harness scores multiple choice.

The score of an answer is the sum of its tokens' log-likelihoods after the prompt, its end token
not among them; `_norm` divides it by the answer's characters. White space at the end of a prompt
(a template's line break) counts to the answer, so that a word keeps the token that it has after a
space. An answer's tokens are those that the prompt and it have together, after as many as the
prompt has alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynarank.errors import UserError
from dynarank.tasks.token_loss import IGNORED, token_terms

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHOICE_IDS, CHOICE_STARTS, CHOICE_SIZES = CHOICE_COLUMNS = (
    "choice_ids",
    "choice_starts",
    "choice_sizes",
)
"""Columns of features: the tokens of the prompt with each choice, the place of the choice's first
token, and the length of its text in characters."""


def check_choices(values: Sequence[Any], where: str, column: str) -> list[list[str]]:
    """Return the choices of every row.

    Args:
        values: the column's values.
        where: the rows' source, for errors.
        column: the column's name, for errors.

    Raises:
        UserError: a row has no list of texts.
    """
    for row, value in enumerate(values):
        if not _is_list_of_texts(value):
            raise UserError(
                f"{where}, row {row}: {column} = {str(value)[:80]!r} is no list of texts, as json "
                "lines and parquet hold them. Mend or drop the row"
            )
    return list(values)


def _is_list_of_texts(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(choice, str) and choice for choice in value)


def choice_features(
    tokenizer: PreTrainedTokenizerBase, prompt: str, choices: Sequence[str], between: str, most: int
) -> dict[str, list[Any]]:
    """Return the columns of one row.

    Args:
        prompt: all that stands before an answer.
        choices: the answers.
        between: what the template puts between the prompt and an answer.
        most: tokens of a prompt with a choice; more are left out at the beginning.
    """

    def encoded(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    before = encoded(prompt.rstrip())
    ids, starts = [], []
    for choice in choices:
        own = encoded(prompt + between + choice)[len(before) :]
        whole = [*before, *own][-most:]
        ids.append(whole)
        # The first token of all has none before it to be predicted from.
        starts.append(max(1, len(whole) - len(own)))
    sizes = [len(choice) for choice in choices]
    return {CHOICE_IDS: ids, CHOICE_STARTS: starts, CHOICE_SIZES: sizes}


def choice_batch(features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Return the choices of a batch: tokens (batch, choices, longest), `IGNORED` where none is.

    Starts and sizes are (batch, choices). A row with fewer choices than others has the start zero
    for those that are missing.
    """
    choices = [feature[CHOICE_IDS] for feature in features]
    most = max(len(of_row) for of_row in choices)
    longest = max(len(ids) for ids in chain.from_iterable(choices))
    tokens = torch.full((len(features), most, longest), IGNORED)
    starts = torch.zeros(len(features), most, dtype=torch.long)
    sizes = torch.zeros(len(features), most, dtype=torch.long)
    for row, feature in enumerate(features):
        for place, ids in enumerate(feature[CHOICE_IDS]):
            tokens[row, place, : len(ids)] = torch.tensor(ids)
        count = len(feature[CHOICE_IDS])
        starts[row, :count] = torch.tensor(feature[CHOICE_STARTS])
        sizes[row, :count] = torch.tensor(feature[CHOICE_SIZES])
    return {CHOICE_IDS: tokens, CHOICE_STARTS: starts, CHOICE_SIZES: sizes}


def score_choices(model: Any, batch: dict[str, Tensor], pad_token: int) -> list[tuple[int, int]]:
    """Return which choice each row takes: by the sum, and by the sum for each character.

    Args:
        batch: what `choice_batch` returned.
    """
    chosen = []
    # A row at a time: tokens (choices, longest), starts (choices), sizes (choices).
    for tokens, starts, sizes in zip(
        batch[CHOICE_IDS], batch[CHOICE_STARTS], batch[CHOICE_SIZES], strict=True
    ):
        # A missing choice starts at 0. No other does, for a token must stand before it.
        there = starts > 0
        sums = _sums(model, tokens[there], starts[there], pad_token)
        by_character = sums / sizes[there].double().cpu()
        chosen.append((int(sums.argmax()), int(by_character.argmax())))
    return chosen


def _sums(model: Any, tokens: Tensor, starts: Tensor, pad_token: int) -> Tensor:
    """Return the log-likelihood of each answer after its prompt, (answers) float64.

    Args:
        tokens: prompts with answers, (answers, longest), `IGNORED` after them.
        starts: the place of each answer's first token, (answers).
    """
    given = tokens != IGNORED
    inputs = {
        "input_ids": tokens.masked_fill(~given, pad_token),
        "attention_mask": given.long(),
    }
    places = torch.arange(tokens.shape[1], device=tokens.device)
    labels = tokens.masked_fill(places < starts[:, None], IGNORED)
    terms = token_terms(model, inputs, labels)
    sums = torch.zeros(len(tokens), dtype=torch.float64)
    return sums.index_add(0, terms.rows.cpu(), terms.log_likelihood.double().cpu())


def choice_scores(
    names: Sequence[str], chosen: Sequence[tuple[int, int]], right: Sequence[int]
) -> dict[str, float]:
    """Return the shares of rows whose choice is the right one, by name."""
    scores = {}
    for position, name in enumerate(("choice_accuracy", "choice_accuracy_norm")):
        if name not in names:
            continue
        hits = 0
        for choices, right_one in zip(chosen, right, strict=True):
            hits += choices[position] == right_one
        scores[name] = hits / len(right)
    return scores
