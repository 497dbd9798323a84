"""Data that packages of the Python index carry, for machines without the hub: fetched with pip, checked by hash.

`vaderSentiment/tweets`: 4,200 tweets, each with the mean rating of at least 20 people from -4 to 4 (Hutto and Gilbert,
ICWSM 2014; MIT licence). Labelled by the rating's sign, ratings within 0.5 of zero left out, and split so that
near-duplicates never stand on both sides.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynarank.errors import UserError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

REQUIREMENT = "vaderSentiment==0.5"
ARCHIVE = "vaderSentiment-0.5.zip"
SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
MEMBER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
TABLE = "hutto_ICWSM_2014/tweets_GroundTruth.txt"

NEUTRAL = 0.5
"""Ratings nearer to zero than this have no polarity."""
SAME = 0.5
"""Share of common words (Jaccard) from which two tweets count as near-duplicates."""
VALIDATION_SHARE = 0.15


def cache_folder() -> Path:
    """Where fetched archives are kept: $DYNARANK_CACHE, else ~/.cache/dynarank."""
    return Path(os.environ.get("DYNARANK_CACHE") or Path.home() / ".cache" / "dynarank")


def load_packaged(name: str) -> dict[str, Dataset]:
    """The train and validation splits of a packaged data set, columns `text` and `label`. Raises `UserError`."""
    if name != "vaderSentiment/tweets":
        raise UserError(
            f"task.path = package:{name} is not known. {nearest(name, ['vaderSentiment/tweets'])}"
        )
    from datasets import Dataset

    texts, labels = read_tweets(fetch())
    validation = split_by_duplicates(texts, VALIDATION_SHARE, seed=0)
    return {
        split: Dataset.from_dict(
            {"text": [texts[i] for i in rows], "label": [labels[i] for i in rows]}
        )
        for split, rows in (
            ("train", np.flatnonzero(~validation)),
            ("validation", np.flatnonzero(validation)),
        )
    }


def fetch(folder: Path | None = None) -> Path:
    """The archive's path, downloaded with pip if it is not in the cache. Raises `UserError` if it cannot be had."""
    folder = folder or cache_folder()
    archive = folder / ARCHIVE
    if not archive.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--no-binary",
                ":all:",
            ]
            done = subprocess.run(
                [*command, "--dest", temporary, REQUIREMENT], capture_output=True, text=True
            )
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise UserError(
                    f"the package {REQUIREMENT}, which carries the quick start's data, could not be downloaded: {reason}. "
                    f"Connect to a package index, or put {ARCHIVE} into {folder}"
                )
            (Path(temporary) / ARCHIVE).replace(archive)
    if (digest := hashlib.sha256(archive.read_bytes()).hexdigest()) != SHA256:
        raise UserError(
            f"{archive} is damaged or not the expected one (sha256 {digest}). Delete it and run again"
        )
    return archive


def read_tweets(archive: Path) -> tuple[list[str], list[int]]:
    """Texts and labels (1 positive, 0 negative) of the tweets that have a polarity."""
    with (
        zipfile.ZipFile(archive) as outer,
        tarfile.open(fileobj=io.BytesIO(outer.read(MEMBER))) as inner,
    ):
        table = inner.extractfile(TABLE)
        assert table is not None
        lines = table.read().decode("utf-8").replace("\r\n", "\n").split("\n")
    rows = [line.split("\t", 2) for line in lines if line.strip()]
    polar = [(text, float(rating)) for _, rating, text in rows if abs(float(rating)) >= NEUTRAL]
    return [text for text, _ in polar], [int(rating > 0) for _, rating in polar]


def split_by_duplicates(texts: list[str], share: float, seed: int) -> np.ndarray:
    """Which texts go to validation, (n) bool: about `share` of them, whole groups of near-duplicates together."""
    groups = duplicate_groups(texts)
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    sizes = np.bincount(groups)[order]
    chosen = order[np.cumsum(sizes) <= share * len(texts)]
    return np.isin(groups, chosen)


def duplicate_groups(texts: list[str]) -> np.ndarray:
    """A group number for each text, (n) int: texts joined by chains of pairs that share `SAME` of their words."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    words = [sorted(set(re.findall(r"\w+|[^\w\s]+", text.lower()))) for text in texts]
    vocabulary = {
        word: index for index, word in enumerate(dict.fromkeys(w for ws in words for w in ws))
    }
    columns = [vocabulary[word] for ws in words for word in ws]
    rows = np.repeat(np.arange(len(texts)), [len(ws) for ws in words])
    bags = csr_matrix((np.ones(len(columns)), (rows, columns)), shape=(len(texts), len(vocabulary)))
    common = (bags @ bags.T).tocoo()
    size = np.asarray(bags.sum(axis=1)).ravel()
    same = common.data >= SAME * (size[common.row] + size[common.col] - common.data)
    pairs = csr_matrix(
        (np.ones(same.sum()), (common.row[same], common.col[same])), shape=common.shape
    )
    return np.asarray(connected_components(pairs, directed=False)[1])
