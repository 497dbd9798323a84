"""Where the configuration's files are, and texts as names of folders."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

LONGEST_NAME = 200
"""Bytes of a folder's name; file systems take 255, of which a sweep's number needs some."""


def conf_folder() -> Path:
    """Return the folder of train.yaml: a clone's conf/, or the one that the wheel carries."""
    package = Path(__file__).resolve().parents[1]
    clone = package.parents[1] / "conf"
    return clone if (clone / "train.yaml").is_file() else package / "conf"


def folder_name(text: str) -> str:
    """Return a text as the name of one folder: no way out of its parent, and never too long.

    Of signs it holds only those that need no quoting in a shell. An = becomes -, the others _.
    """
    name = re.sub(r"[^\w.+-]", "_", str(text).replace("=", "-"))
    # A point would hide the folder, and a hyphen begin an option.
    if name.startswith((".", "-")):
        name = f"_{name[1:]}"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    # 13 are the hyphen and the digest. A letter of several bytes that is cut is left out.
    beginning = name.encode()[: LONGEST_NAME - 13].decode(errors="ignore")
    return f"{beginning}-{digest}"
