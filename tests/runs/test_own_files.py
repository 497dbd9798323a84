"""Only a run's own files are ever replaced or removed, by name; what others keep stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny import configure

from dynarank.errors import UserError
from dynarank.run_folder import FILES
from dynarank.runs.own_files import (
    damaged_files,
    read_own_files,
    remove_earlier_run,
    restore_settings,
)
from dynarank.runs.run import run

ALONE = "resume.shared_folder=false"


@pytest.fixture(scope="module")
def finished(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(configure(folder, hub_root, ALONE))
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's folder."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    names = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/epoch=3.ckpt", "adapter/model.bin"])
def test_a_folder_of_others_is_refused_unless_told_and_never_emptied(
    name: str, hub_root: Path, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("somebody's")
    with pytest.raises(UserError, match=r"output_dir = .*: holds "):
        run(configure(tmp_path, hub_root, ALONE))
    assert (tmp_path / name).read_text() == "somebody's"
    if not name.startswith("adapter"):
        run(configure(tmp_path, hub_root))
        run(configure(tmp_path, hub_root, "resume.path=never", "method=head"))
        assert (tmp_path / name).read_text() == "somebody's"


@pytest.mark.parametrize(
    "name", ["metrics.json", "adapter/adapter_model.safetensors", "checkpoints/step-00000003.ckpt"]
)
def test_what_no_run_wrote_is_never_overwritten(name: str, hub_root: Path, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("somebody's")
    for told in ([], ["resume.path=never"], ["resume.path=auto"]):
        with pytest.raises(UserError, match=f"holds {name}|is whole"):
            run(configure(tmp_path, hub_root, *told))
    assert (tmp_path / name).read_text() == "somebody's"


def test_a_finished_run_is_replaced_only_when_told(folder: Path, hub_root: Path) -> None:
    before = contents(folder)
    with pytest.raises(UserError, match=r"holds a finished run.*resume=never"):
        run(configure(folder, hub_root, "seed=2"))
    assert contents(folder) == before
    (folder / "adapter" / "notes.txt").write_text("mine")
    run(configure(folder, hub_root, "method=head", "resume.path=never"))
    assert not (folder / "ranks.json").exists()
    assert not (folder / "rank_history.json").exists()
    assert not (folder / "rank_map.png").exists()
    assert not (folder / "adapter/adapter_config.json").exists()
    assert (folder / "adapter/notes.txt").read_text() == "mine"
    assert damaged_files(folder) == []


def test_a_refused_command_leaves_the_runs_configuration(hub_root: Path, tmp_path: Path) -> None:
    record = tmp_path / ".hydra" / "overrides.yaml"
    record.parent.mkdir()
    record.write_text("- seed=1\n")
    run(configure(tmp_path, hub_root, ALONE))
    record.write_text("- seed=2\n")  # as Hydra does, before the run begins
    with pytest.raises(UserError, match="holds a finished run"):
        run(configure(tmp_path, hub_root, "seed=2"))
    assert record.read_text() == "- seed=1\n"


def manifests(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*.json"))


def test_an_unfinished_run_that_cannot_be_read_is_kept(folder: Path, hub_root: Path) -> None:
    (folder / "metrics.json").unlink()
    for path in manifests(folder):
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    before = {path.name for path in (folder / "checkpoints").iterdir()}
    for told, said in (
        ([], "cannot be used"),
        (["resume.path=auto"], "is whole"),
        (["resume.path=never"], "another version of dynarank wrote"),
    ):
        with pytest.raises(UserError, match=said):
            run(configure(folder, hub_root, *told))
    for path in manifests(folder):
        path.unlink()
    with pytest.raises(UserError, match="cannot be used"):
        run(configure(folder, hub_root))
    left = {path.name for path in (folder / "checkpoints").iterdir()}
    assert left == {name for name in before if name.endswith(".ckpt")}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", b'{"task": "cola", "metr'),
        ("ranks.json", b"\x00\xff"),
        ("adapter/adapter_model.safetensors", None),
        ("adapter/tokenizer.json", b"{}"),
        ("metrics.csv", b"step\n"),
    ],
)
def test_a_finished_run_that_was_damaged_is_restored(
    name: str,
    content: bytes | None,
    folder: Path,
    finished: Path,
    hub_root: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    results = run(configure(folder, hub_root, "resume.path=auto"))
    assert f"{name} is missing or damaged: restored from the checkpoint" in caplog.text
    assert results.components_kept == 24
    assert damaged_files(folder) == []
    if name != "metrics.json":
        assert (folder / name).read_bytes() == (finished / name).read_bytes()
    assert "finished already" not in caplog.text
    with caplog.at_level("INFO"):
        run(configure(folder, hub_root, "resume.path=auto"))
    assert "finished already" in caplog.text


def test_a_finished_run_without_checkpoints_is_not_trained_again(
    folder: Path, hub_root: Path
) -> None:
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="a finished run without its checkpoints"):
        run(configure(folder, hub_root, "resume.path=auto"))
    assert (folder / "metrics.json").is_file()


def test_a_record_that_names_what_lies_elsewhere_removes_nothing_there(
    folder: Path, hub_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    record = json.loads((folder / FILES).read_text())
    record["files"]["../precious.txt"] = ""
    (folder / FILES).write_text(json.dumps(record))
    run(configure(folder, hub_root, "resume.path=never"))
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["ranks.json", "metrics.csv", "run_files.json", "adapter"])
def test_a_folder_in_a_files_place_is_refused_before_training(
    name: str, folder: Path, hub_root: Path
) -> None:
    """And a file in a folder's."""
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("mine")
    else:
        path.unlink()
        path.mkdir()
    for told in ("resume.path=auto", "resume.path=never"):
        with pytest.raises(UserError, match=rf"output_dir = .*{name}.*Move it\s+away"):
            run(configure(folder, hub_root, told))
    assert path.exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"../other/.hydra/config.yaml": "seed: 7\n"},
        {".hydra/config.yaml": ["seed"]},
        {".hydra/con\0fig.yaml": "seed: 7\n"},
        {".hydra/config.yaml": "\ud800"},
    ],
)
def test_a_damaged_record_restores_nothing_elsewhere(settings: object, tmp_path: Path) -> None:
    for name in ("run", "other"):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "config.yaml").write_text("seed: 3\n")
    content = {"files": {}, "settings": settings}
    (tmp_path / "run" / FILES).write_text(json.dumps(content))
    before = contents(tmp_path)
    restore_settings(tmp_path / "run")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("file", ["a\0b", "\udbc4", 3, None])
def test_a_damaged_record_removes_nothing_and_does_not_fail(file: object, tmp_path: Path) -> None:
    (tmp_path / FILES).write_text(json.dumps({"files": {"metrics.csv": file}, "settings": {}}))
    if isinstance(file, str):
        content = {"files": {file: "", "../x": ""}, "settings": {}}
        (tmp_path / FILES).write_text(json.dumps(content))
    assert damaged_files(tmp_path) == []
    remove_earlier_run(tmp_path)
    assert read_own_files(tmp_path) is not None
