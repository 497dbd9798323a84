"""What counts as a secret, and how it is kept out of what is printed."""

from __future__ import annotations

import os
import re

SECRET_NAME = re.compile(
    r"(^|[._-])(token|(api)?key|secret|pass(word|wd|phrase)|credentials?)$", re.IGNORECASE
)
"""Names of settings and of environment variables."""
SECRET_FORMS = (
    re.compile(
        r"\b(hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abprs]-|wandb_v1_)[\w-]{16,}"
        r"|\bAKIA[0-9A-Z]{16}\b"
    ),
    re.compile(
        r"(?<=://)[^/\s@:]*:[^/\s@]+(?=@)|(?<=https://)[^/\s@]+(?=@)|(?<=http://)[^/\s@]+(?=@)"
    ),
    re.compile(
        r"(?<=[?&])(x-(amz|goog)-(signature|credential)|sig|signature|(access_?)?token|(api_?)?key)"
        r"=[^&\s]*",
        re.IGNORECASE,
    ),
)
"""Tokens, a user with a password in a URL, a signed URL."""
SHORTEST = 8
"""Characters from which on an environment variable's value counts as a secret."""


def secret_environment() -> dict[str, str]:
    """Return the environment variables that are secret by their names.

    A path is none of them: it says where a secret lies.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if SECRET_NAME.search(name) and len(value) >= SHORTEST and not os.path.exists(value)
    }


def redact(text: str) -> str:
    """Return the text with *** for every secret in it."""
    for secret in secret_environment().values():
        text = text.replace(secret, "***")
    for form in SECRET_FORMS:
        text = form.sub("***", text)
    return text
