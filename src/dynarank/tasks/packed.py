"""Several rows in one training feature, so that no batch is half padding; each row is apart.

Legend: T tokens of a feature, made of segments, which are whole rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynarank.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

SEGMENTS = "seq_lengths"
"""The column of the lengths of a feature's segments, as TRL names it."""


def check_packing() -> None:
    """Raise `UserError` where TRL is not installed, without which no rows can be packed."""
    if find_spec("trl") is None:
        raise UserError(
            "task.packing = true: rows are packed by TRL, which is not installed: "
            "pip install 'dynarank[llm]', or task.packing=false"
        )


def pack(features: Dataset, length: int) -> Dataset:
    """Return features of up to `length` tokens that hold several rows each, by best fit.

    Raises:
        UserError: TRL, whose packing this is, is not installed.
    """
    check_packing()
    from trl.data_utils import pack_dataset

    # TRL packs lists that are as long as the tokens, and refuses all else.
    kept = features.select_columns(["input_ids", "labels"])
    return pack_dataset(kept, seq_length=length, strategy="bfd")  # best fit, decreasing


def segment_positions(lengths: Sequence[int]) -> list[int]:
    """Return the position of each token in its own row, (T)."""
    positions: list[int] = []
    for length in lengths:
        positions.extend(range(length))
    return positions


def segment_mask(lengths: Sequence[Sequence[int]], longest: int) -> Tensor:
    """Return what is added to attention scores, (batch, 1, longest, longest) float32.

    It is 0 where a token may look (at itself and those before it in its own row), and the lowest
    number elsewhere. Padding may look at itself, so that no row of the mask is empty.
    """
    # The 1 is for the heads, which share it.
    mask = torch.full((len(lengths), 1, longest, longest), torch.finfo(torch.float32).min)
    for row, of_row in enumerate(lengths):
        start = 0
        for length in of_row:
            end = start + length
            seen = torch.ones(length, length, dtype=torch.bool).tril()
            mask[row, 0, start:end, start:end].masked_fill_(seen, 0.0)
            start = end
        padding = torch.arange(start, longest)
        mask[row, 0, padding, padding] = 0.0
    return mask


def packed_batch(
    features: Sequence[dict[str, Any]], pad_token: int, ignored: int
) -> dict[str, Tensor]:
    """Return a batch of packed features, padded on the right, with each row's own attention.

    The first label of every segment is left out: it would be predicted from the row before.
    """
    longest = max(len(feature["input_ids"]) for feature in features)
    inputs, labels, positions = [], [], []
    for feature in features:
        missing = longest - len(feature["input_ids"])
        inputs.append(feature["input_ids"] + [pad_token] * missing)
        own = list(feature["labels"])
        start = 0
        for length in feature[SEGMENTS]:
            own[start] = ignored
            start += length
        labels.append(own + [ignored] * missing)
        positions.append(segment_positions(feature[SEGMENTS]) + [0] * missing)
    return {
        "input_ids": torch.tensor(inputs),
        "labels": torch.tensor(labels),
        "position_ids": torch.tensor(positions),
        "attention_mask": segment_mask([feature[SEGMENTS] for feature in features], longest),
    }
