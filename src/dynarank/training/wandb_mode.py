"""Whether W&B runs online, and what decided it. Imports nothing heavy."""

from __future__ import annotations

import netrc
import os


def wandb_mode(stated: str) -> str:
    """The mode that needs no prompt: as stated, else WANDB_MODE, else online when a key is at hand, else offline."""
    return mode_and_reason(stated)[0]


def mode_and_reason(stated: str) -> tuple[str, str]:
    """W&B's mode, and what decided it."""
    if stated != "auto":
        return stated, f"logger.mode={stated}"
    if mode := os.environ.get("WANDB_MODE"):
        return mode, "WANDB_MODE"
    if os.environ.get("WANDB_API_KEY"):
        return "online", "WANDB_API_KEY is set"
    return ("online", "logged in") if _has_login() else ("offline", "not logged in")


def _has_login() -> bool:
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC") or None).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
