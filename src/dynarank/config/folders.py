"""Where the files of settings lie: conf/ of a clone, or the copy that a wheel carries."""

from __future__ import annotations

from pathlib import Path


def conf_folder() -> Path:
    """Return the folder of train.yaml: a clone's conf/, or the one that the wheel carries."""
    package = Path(__file__).resolve().parents[1]
    clone = package.parents[1] / "conf"
    return clone if (clone / "train.yaml").is_file() else package / "conf"
