"""What is installed against what is required, and releases that are known to be bad; nothing of it is imported."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

STEALS = "steals credentials when it is imported (GHSA-w37p-236h-pfx3): replace it, and every credential it could reach"
KNOWN_BAD = {("lightning", "2.6.2"): STEALS, ("lightning", "2.6.3"): STEALS}


@dataclass(frozen=True)
class Requirement:
    """A package that dynarank needs, as NAME>=LEAST in its metadata."""

    name: str
    least: str
    extra: str
    """train, or "" for the core."""
    version: str | None
    """Installed; None: it is missing."""

    @property
    def trouble(self) -> str | None:
        """What is wrong with it."""
        if self.version is None:
            return f"{self.name} is missing"
        if bad := KNOWN_BAD.get((self.name, self.version)):
            return f"{self.name} {self.version} {bad}"
        low = release(self.version) < release(self.least)
        return f"{self.name} {self.version} is below {self.least}" if low else None


def requirements() -> list[Requirement]:
    """Those of the core and of training; none where dynarank itself is not installed."""
    try:
        stated = importlib.metadata.requires("dynarank") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [one for one in map(_parse, stated) if one.extra in ("", "train")]


def known_bad() -> list[str]:
    """Installed releases that must not be imported."""
    return [f"{name} {version}" for name, version in KNOWN_BAD if installed(name) == version]


def _parse(stated: str) -> Requirement:
    wanted, _, marker = stated.partition(";")
    name, _, least = wanted.strip().partition(">=")
    extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
    return Requirement(
        name.strip(), least.strip() or "0", extra[1] if extra else "", installed(name.strip())
    )


def installed(name: str) -> str | None:
    """A package's version."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, for comparison; what follows them is left out."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else [0]
    return tuple(numbers + [0] * (4 - len(numbers)))
