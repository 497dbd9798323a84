"""What counts as a secret, and how it is kept out of what is printed."""

from __future__ import annotations

import os
import re
from itertools import pairwise

SECRET_ENDINGS = {
    *("token", "key", "pass", "passcode", "pwd", "pw", "pat", "auth", "jwt", "dsn", "cookie"),
    *("authorization", "bearer", "otp", "sas"),
}
"""Words that make a name secret where they end it: `GITHUB_PAT`, `accessToken`."""
SECRET_WORD = re.compile(
    r"passwords?|passwd|passphrase|secrets?|credentials?|authheader"
    r"|(access|auth|private|api|master|secret|session|refresh|bot|gh|hf)(key|token)s?"
)
"""What makes a name secret wherever a word of it ends so: `PGPASSWORD`, `client_secret_v2`."""
# The shell's folders, and settings of tokenizers.
NO_SECRET = {"PWD", "OLDPWD", "pad_token", "eos_token", "bos_token", "unk_token", "mask_token"}
SECRET_FORMS = (
    re.compile(
        # Hugging Face, GitHub, GitLab, OpenAI, Slack, W&B, npm, PyPI, Docker, RubyGems, Stripe,
        # DigitalOcean, Vault, Google's sign-in, SendGrid.
        r"\b(hf_|api_org_|gh[pousr]_|github_pat_|gl[a-z]{2,5}-|sk-|xapp-|xox[a-z]-|wandb_v1_|npm_"
        r"|pypi-|dckr_pat_|rubygems_|[srp]k_(live|test)_|do[opr]_v1_|hv[sbr]\.|GOCSPX-|ya29\.|SG\.)"
        r"[\w.-]{16,}"
    ),
    re.compile(
        # AWS's key ids, Google's API keys, Databricks.
        r"\b(AKIA|ASIA|ABIA|ACCA|A3T[A-Z0-9])[A-Z0-9]{16}\b"
        r"|\bAIza[\w-]{35}|\bdapi[0-9a-f]{32}"
    ),
    # JSON web tokens: eyJ begins an object in base64.
    re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}(\.[\w-]*)?"),
    re.compile(
        # NVIDIA, Groq, Perplexity, LangSmith, Linear, Pulumi, Notion, Replicate and others.
        r"\b(nvapi-|gsk_|pplx-|lsv2_[a-z]{2}_|whsec_|shp[a-z]{2}_|lin_api_|sq0[a-z]{3}-|pul-|PMAK-"
        r"|NRAK-|AGE-SECRET-KEY-1|ntn_|sbp_|AT[AC]TT3|figd_|sntry[su]_|dp\.[a-z]{2,4}\.|fm2_|xai-"
        r"|CCIPAT_|tvly-|tgp_v1_|jina_|pcsk_|KGAT_|vcp_|fw_|r8_)"
        r"(?=[A-Za-z]*\d)[A-Za-z0-9]{20,}"  # without a break, so that no file's name is meant
    ),
    re.compile(
        # Twilio, Mailchimp, Terraform, and Telegram's bots.
        r"\bSK[0-9a-f]{32}\b|\b[0-9a-f]{32}-us\d{1,2}\b|\.atlasv1\.[\w-]{30,}"
        r"|\b\d{8,10}:AA[\w-]{30,}"
    ),
    re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY( BLOCK)?-----|hooks\.slack\.com/services/[\w/]+"
        r"|discord(app)?\.com/api/webhooks/\d+/[\w-]+"
    ),
    re.compile(r"\bauthorization\W{1,4}basic\s+[\w+/-]{8,}=*", re.IGNORECASE),
    re.compile(r"--(password|passwd|token|secret|api-?key)[ =]+[^\s-]\S*", re.IGNORECASE),
    re.compile(r"\bbearer\s+[\w.~+/=-]{16,}", re.IGNORECASE),
    re.compile(
        # Looked behind and ahead, so that the address around the secret stays readable.
        r"(?<=://)[^/\s@:]*:[^/\s@]+(?=@)|(?<=https://)[^/\s@]+(?=@)|(?<=http://)[^/\s@]+(?=@)"
    ),
    re.compile(
        # A parameter of a URL; signed links to cloud storage hold a signature.
        r"(?<=[?&;#])([\w-]*(signature|credential|token|passw(or)?d|passphrase|secret|api[_-]?key)"
        r"|key|sig|pwd|pass|pat|auth|access_?key)=[^&;\s]+",
        re.IGNORECASE,
    ),
    re.compile(
        # A part of a database's or a store's connection string.
        r"(?<![\w.])(password|passwd|pwd|accountkey|sharedaccesskey)\s*=\s*[^\s;&,]+",
        re.IGNORECASE,
    ),
)
"""Tokens of model hubs, forges, clouds and package registries; JSON web tokens; private keys; a
user with a password in a URL; a secret in a URL's query or in a database's connection."""
SHORTEST = 8  # shorter ones stand in harmless texts too
"""Characters from which on an environment variable's value counts as a secret."""


def is_secret_name(name: str) -> bool:
    """Return whether a setting or an environment variable is secret by its name."""
    if name in NO_SECRET:
        return False
    # accessToken becomes access_token.
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    spaced = re.sub(r"[\W_\d]+$", "", spaced)  # a number at the end counts secrets: GITHUB_TOKEN_2
    words = [word for word in re.split(r"[^a-z0-9]+", spaced) if word]
    if not words:
        return False
    last = words[-1]
    ends_in_secret = re.compile(f"({SECRET_WORD.pattern})$")
    if last in SECRET_ENDINGS or any(ends_in_secret.search(word) for word in words):
        return True
    # AWS_ACCESS_KEY_ID is no secret, nor is the name of a file that holds one.
    if last in ("id", "file"):
        return False
    pairs = [first + second for first, second in pairwise(words)]
    return any(SECRET_WORD.fullmatch(pair) for pair in pairs)


def secret_environment() -> dict[str, str]:
    """Return the values of environment variables that are secret by name or form, by name.

    A path is none of them: it says where a secret lies.
    """
    secrets = {}
    for name, value in os.environ.items():
        if len(value) < SHORTEST or os.path.exists(value):
            continue
        if is_secret_name(name) or any(form.search(value) for form in SECRET_FORMS):
            secrets[name] = value
    return secrets


def redact(text: str) -> str:
    """Return the text with *** for every secret in it."""
    for secret in secret_environment().values():
        text = text.replace(secret, "***")
    for form in SECRET_FORMS:
        text = form.sub("***", text)
    return text
