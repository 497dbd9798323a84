"""Tweets and snippets of longer texts that at least 20 people have rated, as polarity tasks.

Each text has the mean of its ratings from -4 to 4 (Hutto and Gilbert, ICWSM 2014; MIT licence). It
is labelled by the rating's sign. Ratings near zero are left out. Neither near-duplicates nor the
snippets of one text ever stand on both sides.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dynarank.tasks.near_duplicates import duplicate_groups, joined_groups, split_by_groups

if TYPE_CHECKING:
    from datasets import Dataset

MEMBER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
TABLES = {
    "vaderSentiment/tweets": "hutto_ICWSM_2014/tweets_GroundTruth.txt",
    "vaderSentiment/products": "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
    "vaderSentiment/editorials": "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
}
"""The archive's tables by data set. Its movie reviews are those of SST-2, and stay out."""
NEUTRAL = 0.5
"""Ratings nearer to zero than this have no polarity."""
SAME = 0.5
"""Share of common words (Jaccard) from which two texts count as near-duplicates."""
VALIDATION_SHARE = 0.15


class RatedTexts(NamedTuple):
    """Texts that have a polarity."""

    texts: list[str]
    labels: list[int]
    """1 positive, 0 negative."""
    sources: list[str]
    """What a text was taken from: the number of a review or an editorial; a tweet's own."""


def load_rated(archive: Path, table: str) -> dict[str, Dataset]:
    """Return the splits of a table of rated texts, columns `text` and `label`."""
    from datasets import Dataset

    texts, labels, sources = read_rated(archive, table)
    groups = joined_groups(duplicate_groups(texts, SAME), sources)
    validation = split_by_groups(groups, VALIDATION_SHARE, seed=0)

    def split(rows: np.ndarray) -> Dataset:
        return Dataset.from_dict(
            {"text": [texts[row] for row in rows], "label": [labels[row] for row in rows]}
        )

    return {
        "train": split(np.flatnonzero(~validation)),
        "validation": split(np.flatnonzero(validation)),
    }


def read_rated(archive: Path, table: str) -> RatedTexts:
    """Return the texts of a table whose ratings have a polarity."""
    with (
        zipfile.ZipFile(archive) as outer,
        tarfile.open(fileobj=io.BytesIO(outer.read(MEMBER))) as inner,
    ):
        file = inner.extractfile(table)
        assert file is not None
        # splitlines() would also break a text at rarer signs than line feeds.
        lines = file.read().decode("utf-8").replace("\r\n", "\n").split("\n")
    rated = RatedTexts(texts=[], labels=[], sources=[])
    for line in lines:
        if not line.strip():
            continue
        number, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= NEUTRAL:
            rated.texts.append(text)
            rated.labels.append(int(float(rating) > 0))
            rated.sources.append(number.split("_")[0])  # "12_3" is text 12's third snippet
    return rated
