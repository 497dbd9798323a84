"""Secrets are known by their names and their forms, and innocent words are left alone."""

from __future__ import annotations

import pytest

from dynarank.config.redaction import is_secret_name, redact

SECRET = [
    *("HF_TOKEN", "WANDB_API_KEY", "PGPASSWORD", "MYSQL_PWD", "GITHUB_PAT", "accessToken"),
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "client_secret", "API_KEY_PROD", "dbPassword"),
    *("npm_auth", "GOOGLE_CREDENTIALS", "SECRET_KEY_2", "logger.api_key", "SENTRY_DSN"),
]
INNOCENT = [
    *("monkey", "keyboard", "tokenizer", "max_tokens", "TOKENIZERS_PARALLELISM", "pad_token"),
    *("PWD", "OLDPWD", "keep", "compass", "author", "path", "task.columns.label", "HOSTNAME"),
]


@pytest.mark.parametrize("name", SECRET)
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", INNOCENT)
def test_innocent_names(name: str) -> None:
    assert not is_secret_name(name)


FORMS = [
    "hf_" + "a" * 34,
    "ghp_" + "b" * 36,
    "glrt-" + "c" * 20,
    "npm_" + "d" * 36,
    "pypi-AgEIcHlwaS5vcmc" + "e" * 30,
    "dckr_pat_" + "f" * 27,
    "sk_live_" + "g" * 24,
    "ASIA" + "H" * 16,
    "AIza" + "i" * 35,
    "ya29." + "j" * 30,
    "eyJhbGciOiJI." + "eyJzdWIiOiIx." + "k" * 20,
    "-----BEGIN RSA PRIVATE KEY-----",
    "Bearer " + "l" * 20,
    "https://host/a?x=1&password=canary",
    "https://host/a?access_token=canary&b=2",
    "https://host/a?X-Amz-Security-Token=canary",
    "postgres://me:canary@host/db",
    "Server=h;Password=canary;Port=1",
    "AccountKey=canary==",
]


@pytest.mark.parametrize("text", FORMS)
def test_forms_of_secrets_are_redacted(text: str) -> None:
    assert "***" in redact(f"x {text} y")
    assert "canary" not in redact(f"x {text} y")


@pytest.mark.parametrize(
    "text",
    [
        *("monkey=1", "tokenizer=x", "https://host/a?max_tokens=3&monkey=1", "keyboard", "sk-x"),
        *("task.columns.label=password", "0123456789abcdef0123456789abcdef01234567", "me@host"),
        *("budget.target=8", "model.path=org/npm_model", "/home/me/pypi-mirror", "eyJ.eyJ"),
    ],
)
def test_innocent_texts_stay(text: str) -> None:
    assert redact(text) == text


def test_the_value_of_a_secret_variable_is_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "canary-canary")
    monkeypatch.setenv("DATABASE_URL", "postgres://me:pw-of-db@host/db")
    assert redact("a canary-canary b") == "a *** b"
    assert "pw-of-db" not in redact("a postgres://me:pw-of-db@host/db b")


@pytest.mark.parametrize(
    "name",
    [
        *("GITHUB_TOKEN_2", "token3", "passwords", "HF_APIKEYS", "masterkey", "AUTH_HEADER"),
        *("authorization", "otp", "db_pw", "clientSecrets"),
    ],
)
def test_counted_and_plural_names_are_secret_too(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "text",
    [
        *("nvapi-" + "a1B2" * 12, "gsk_" + "a1B2" * 12, "r8_" + "a1B2" * 9, "whsec_" + "a1B2" * 8),
        *("lsv2_pt_" + "a1b2" * 8, "AGE-SECRET-KEY-1" + "A1B2" * 14, "123456789:AAE" + "a1B2" * 8),
        *("https://discord.com/api/webhooks/12/a1B2", "authorization: Basic dXNlcjpwYXNz"),
        *("-----BEGIN PGP PRIVATE KEY BLOCK-----", "https://x?api-key=abc1", "--password hunter22"),
    ],
)
def test_tokens_of_more_services_are_redacted(text: str) -> None:
    assert "***" in redact(f"x {text} y")


@pytest.mark.parametrize(
    "text",
    [
        *("jina_embeddings_v2_base_en_model", "r8_roberta-base_cola_20261125", "pul-x", "fw_sgd"),
        *("basic classification of 12345678 rows", "--token-file x"),
    ],
)
def test_names_that_begin_as_tokens_do_stay(text: str) -> None:
    assert redact(text) == text
