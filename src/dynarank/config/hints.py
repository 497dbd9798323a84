"""What the user may have meant by an override that Hydra does not know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dynarank.errors import nearest


def hints(overrides: Sequence[str], conf: Path) -> Iterator[str]:
    """Yield, for each override whose name or group value is unknown, the nearest known ones."""
    from dynarank.config.describe import setting_names

    groups = {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in conf.iterdir()
        if folder.is_dir()
    }
    settings = setting_names()
    for override in overrides:
        name, _, value = override.lstrip("+~").partition("=")
        if name.startswith(("hydra", "-")) or not value:
            continue
        if name in groups:
            for choice in value.split(","):
                if choice not in groups[name]:
                    yield f"{name}={choice}: {nearest(choice, groups[name])}"
        elif name not in settings:
            yield f"{name}: {nearest(name, [*settings, *groups])}"
