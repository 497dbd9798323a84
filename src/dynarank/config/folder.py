"""Where the files of settings lie: conf/ of a clone, or the copy that a wheel carries."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of the package `dynarank`."""


def conf_folder() -> Path:
    """Return the folder that holds train.yaml and its groups.

    A wheel carries it inside the package, as dynarank/conf. In a clone it stands at the top,
    beside src/.

    Raises:
        FileNotFoundError: the package was copied without its configuration.
    """
    carried = PACKAGE / "conf"
    cloned = PACKAGE.parents[1] / "conf"
    for folder in (carried, cloned):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"there is no train.yaml in {carried} or {cloned}: dynarank is not installed as a whole"
    )


def is_clone() -> bool:
    """Return whether the package runs from a clone of the repository."""
    return (PACKAGE.parents[1] / "pyproject.toml").is_file()
