"""Whether W&B runs online, and what decided it. Imports nothing heavy."""

from __future__ import annotations

import netrc
import os


def wandb_mode(stated: str) -> str:
    """Return the W&B mode that needs no prompt.

    It is the stated one, else WANDB_MODE, else online where a key is at hand, else offline.
    """
    return mode_and_reason(stated)[0]


def mode_and_reason(stated: str) -> tuple[str, str]:
    """Return W&B's mode and what decided it, in words."""
    if stated != "auto":
        return stated, f"logger.mode={stated}"
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return mode, "WANDB_MODE"
    if os.environ.get("WANDB_API_KEY"):
        return "online", "WANDB_API_KEY is set"
    if _has_login():
        return "online", "logged in"
    return "offline", "not logged in"


def _has_login() -> bool:
    """Return whether the user's netrc file holds a login for W&B's server."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC") or None).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
