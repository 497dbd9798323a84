"""Whether W&B runs online, what decided it, and in which project. It imports nothing heavy."""

from __future__ import annotations

import netrc
import os

DEFAULT_PROJECT = "dynarank"
"""The setting logger.project, where nobody has changed it."""
TRUE = ("true", "1", "yes", "on")
"""What WANDB_DISABLED may say; W&B's own offline modes are WANDB_MODE's."""


def wandb_mode(stated: str) -> str:
    """Return the W&B mode that needs no prompt.

    It is the stated one, else what WANDB_DISABLED or WANDB_MODE say, else online where a key is at
    hand, else offline.
    """
    return mode_and_reason(stated)[0]


def mode_and_reason(stated: str) -> tuple[str, str]:
    """Return W&B's mode and what decided it, in words."""
    if stated != "auto":
        return stated, f"logger.mode={stated}"
    if os.environ.get("WANDB_DISABLED", "").lower() in TRUE:
        return "disabled", "WANDB_DISABLED"
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return mode, "WANDB_MODE"
    if os.environ.get("WANDB_API_KEY"):
        return "online", "WANDB_API_KEY is set"
    if _has_login():
        return "online", "logged in"
    return "offline", "not logged in"


def wandb_project(stated: str) -> str:
    """Return the W&B project: the stated one, or WANDB_PROJECT where the setting was left alone."""
    if stated != DEFAULT_PROJECT:
        return stated
    return os.environ.get("WANDB_PROJECT") or stated


def _has_login() -> bool:
    """Return whether the user's netrc file holds a login for W&B's server."""
    # Read here, because to ask wandb is to import it.
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC") or None).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
