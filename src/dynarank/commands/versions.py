"""What is installed against what is required, and releases that are known to be bad.

None of the packages is imported: a bad release could act when it is.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

PROJECT = "dynarank"
EXTRA = "train"
STEALS = (
    "steals credentials when it is imported (GHSA-w37p-236h-pfx3): replace it, and every "
    "credential it could reach"
)
KNOWN_BAD = {("lightning", "2.6.2"): STEALS, ("lightning", "2.6.3"): STEALS}


@dataclass(frozen=True)
class Requirement:
    """A package that dynarank needs, as its metadata states it."""

    name: str
    range: str
    """Versions that fit, as ">=2.6.6,<2.7"."""
    optional: bool
    """Whether training alone needs it, and the library does not."""
    version: str | None
    """The installed version; None: the package is missing."""
    fits: bool
    """Whether the installed version lies in the range."""

    @property
    def trouble(self) -> str | None:
        """Return what is wrong with the package, or None."""
        if self.version is None:
            return f"{self.name} is missing"
        bad = KNOWN_BAD.get((self.name, self.version))
        if bad is not None:
            return f"{self.name} {self.version} {bad}"
        if not self.fits:
            return f"{self.name} {self.version} does not fit {self.range}"
        return None


def requirements() -> list[Requirement]:
    """Return what the library and training need; nothing where dynarank itself is not installed."""
    try:
        stated = importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [_parse(text) for text in stated]
    return [requirement for requirement in found if requirement is not None]


def _parse(stated: str) -> Requirement | None:
    """Return a stated requirement; None where neither the library nor training needs it here."""
    from packaging.requirements import Requirement as Stated

    parsed = Stated(stated)
    marker = parsed.marker
    # A marker may name the extra that a package is for. What needs none is the library's own.
    always = marker is None or marker.evaluate({"extra": ""})
    in_training = marker is None or marker.evaluate({"extra": EXTRA})
    if not always and not in_training:
        return None
    version = installed(parsed.name)
    return Requirement(
        name=parsed.name,
        range=_range(stated=str(parsed.specifier)),
        optional=not always,
        version=version,
        # A pre-release that somebody has installed is judged by its number alone.
        fits=version is not None and parsed.specifier.contains(version, prereleases=True),
    )


def _range(stated: str) -> str:
    """Return the bounds with the lower one first; packaging gives them in no useful order."""
    # By the alphabet < stands before >.
    return ",".join(sorted(stated.split(","), reverse=True))


def known_bad() -> list[str]:
    """Return the installed releases that must not be imported."""
    return [f"{name} {version}" for name, version in KNOWN_BAD if installed(name) == version]


def installed(name: str) -> str | None:
    """Return a package's installed version, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
