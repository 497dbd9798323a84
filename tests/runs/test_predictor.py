"""A run loaded to predict: its base where it is now, and what does not belong together refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Timer
from prediction_runs import predict, records, trained
from safetensors.torch import load_file, save_file
from tiny import configure

from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.runs.origin import find_adapter
from dynarank.runs.predictor import load_predictor
from dynarank.runs.run import run


@pytest.fixture(scope="module")
def cola(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("cola"), hub_root, "task=cola")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("sentence\nthe cat sat\na dog\n")
    return path


def test_a_base_that_is_not_where_it_is_looked_for_is_said(
    cola: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predict(cola, rows, tmp_path / "o.csv", tmp_path)
    said = f"FacebookAI/roberta-base: not in {tmp_path}; taken from where it was in training"
    assert said in caplog.text


def test_a_base_that_moved_is_named(cola: Path, rows: Path, hub_root: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(hub_root / "models/FacebookAI/roberta-base", moved)
    predict(cola, rows, tmp_path / "there.csv", hub_root)
    predict(cola, rows, tmp_path / "here.csv", tmp_path, "--base", str(moved))
    assert records(tmp_path / "here.csv") == records(tmp_path / "there.csv")


def test_a_full_model_is_not_held_to_its_bases_hash(
    hub_root: Path, rows: Path, tmp_path: Path
) -> None:
    weights = hub_root / "models/FacebookAI/roberta-base/model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    folder = trained(tmp_path / "run", hub_root, "method=full", f"model.sha256={digest}")
    predict(folder, rows, tmp_path / "o.csv", hub_root)
    assert len(records(tmp_path / "o.csv")) == 2


@pytest.mark.parametrize("method", ["dora", "houlsby"])
def test_another_models_adapter_is_refused(
    method: str, hub_root: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(tmp_path / "run", hub_root, f"method={method}")
    with pytest.raises(SystemExit):
        predict(folder, rows, tmp_path / "o.csv", hub_root, "--base", "facebook/bart-base")
    said = capsys.readouterr().err
    assert said.startswith(f"error: {folder / 'adapter'} does not belong to ")
    assert "bart-base" in said


def test_a_folder_of_another_version_is_refused(cola: Path, hub_root: Path, tmp_path: Path) -> None:
    shutil.copytree(cola / "adapter", tmp_path / "adapter")
    record = json.loads((tmp_path / "adapter/dynarank.json").read_text())
    record["task"]["columns"]["newer"] = 1
    (tmp_path / "adapter/dynarank.json").write_text(json.dumps(record))
    said = r"task/text_classification\.columns\.newer: recorded by another version"
    with pytest.raises(UserError, match=said):
        load_predictor(tmp_path, HubConfig(str(hub_root)))


def test_an_adapter_over_budget_is_used_when_asked_for(
    hub_root: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    calls = iter(range(1000))
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_: 0.0 if next(calls) < 2 else 3601.0)
    run(configure(folder, hub_root, "trainer.max_time=00:01:00:00"))
    with pytest.raises(SystemExit, match="2"):
        predict(folder, rows, tmp_path / "o.csv", hub_root)
    said = capsys.readouterr().err
    assert "the budget was not reached" in said
    assert "over_budget/ as it is with --over-budget" in said
    predict(folder, rows, tmp_path / "o.csv", hub_root, "--over-budget")
    predict(folder / "over_budget", rows, tmp_path / "p.csv", hub_root)
    assert records(tmp_path / "o.csv") == records(tmp_path / "p.csv")


def test_an_adapter_at_budget_comes_before_others(cola: Path, tmp_path: Path) -> None:
    assert find_adapter(cola, over_budget=True) == cola / "adapter"
    assert find_adapter(cola / "adapter") == cola / "adapter"
    with pytest.raises(UserError, match=r"holds no dynarank\.json"):
        find_adapter(tmp_path, over_budget=True)


def test_a_base_of_other_weights_is_refused_and_the_way_out_works(
    cola: Path, hub_root: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(hub_root / "models/FacebookAI/roberta-base", other)
    weights = load_file(other / "model.safetensors")
    save_file(
        {k: v * 1.01 for k, v in weights.items()}, other / "model.safetensors", {"format": "pt"}
    )
    shutil.copytree(cola / "adapter", tmp_path / "adapter")
    hub = HubConfig(str(hub_root))
    with pytest.raises(UserError, match=r"trained on other weights.*Name its base by --base"):
        load_predictor(tmp_path, hub, base=str(other), device="cpu")
    record = json.loads((tmp_path / "adapter/dynarank.json").read_text())
    del record["digests"]["base_weights"]
    (tmp_path / "adapter/dynarank.json").write_text(json.dumps(record))
    load_predictor(tmp_path, hub, base=str(other), device="cpu")


def test_another_tokenizer_is_refused(cola: Path, hub_root: Path, tmp_path: Path) -> None:
    shutil.copytree(cola / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter/tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer is not the one .*Put the files"):
        load_predictor(tmp_path, HubConfig(str(hub_root)), device="cpu")
    path.unlink()
    with pytest.raises(UserError):
        load_predictor(tmp_path, HubConfig(str(hub_root)), device="cpu")


def test_other_labels_than_in_training_are_refused_with_the_remedy(
    cola: Path, hub_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(cola / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter/dynarank.json"
    record = json.loads(path.read_text())
    record["task"]["labels"] = ["a", "b", "c"]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"has the shape .*task\.labels"):
        load_predictor(tmp_path, HubConfig(str(hub_root)), device="cpu")
