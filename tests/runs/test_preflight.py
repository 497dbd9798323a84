from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import configure

from dynarank.config.schema import TrainerConfig
from dynarank.errors import UserError
from dynarank.runs import preflight
from dynarank.runs.preflight import (
    check_machine,
    check_output_dir,
    locate_model,
    warn_of_unused_dem,
)
from dynarank.runs.run import run


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"output_dir = .*file/run: cannot be written.*hydra\.run\.dir=DIR"
    ):
        check_output_dir(str(tmp_path / "file" / "run"))


def test_precisions_that_the_machine_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(preflight, "cpu_computes_bf16", lambda: False)
    for precision in ("bf16-mixed", "16-mixed"):
        with pytest.raises(
            UserError, match=f"trainer.precision = {precision}.*Use trainer.precision=32-true"
        ):
            check_machine(TrainerConfig(precision=precision))
    check_machine(TrainerConfig())
    monkeypatch.setattr(preflight, "cpu_computes_bf16", lambda: True)
    check_machine(TrainerConfig(precision="bf16-mixed"))


def test_an_accelerator_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"trainer\.accelerator = gpu: this machine has none"):
        check_machine(TrainerConfig(accelerator="gpu"))


def test_model_and_data_are_missed_in_one_message(hub_root: Path, tmp_path: Path) -> None:
    config = configure(tmp_path, hub_root, "model.path=org/model", "task.path=org/data")
    with pytest.raises(
        UserError,
        match=r"task\.path = org/data and model\.path = org/model: not found under hub\.root",
    ):
        locate_model(config)


def test_nothing_is_loaded_before_both_are_found(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(
        datasets, "load_dataset", lambda *args, **options: pytest.fail("loaded data")
    )
    with pytest.raises(UserError, match=r"model\.path = org/model"):
        run(configure(tmp_path, hub_root, "model.path=org/model"))


def test_bad_data_is_found_before_the_model_loads(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dynarank.runs.prepare as module

    monkeypatch.setattr(module, "load_pretrained", lambda *args: pytest.fail("loaded the model"))
    with pytest.raises(UserError, match=r"no column 'text'"):
        run(configure(tmp_path, hub_root, "task.columns.text=text"))


@pytest.mark.parametrize(
    ("typed", "warns"),
    [
        (["method=lora", "dem.eta=0.3"], True),
        (["method=dynarank", "dem=paper"], True),
        (["method=lora"], False),
        (["method=lora", "dem.eta=0"], False),
        (["method=dora", "dem.eta=0.3"], False),
    ],
    ids=["lora", "dynarank", "not-typed", "zero", "dora"],
)
def test_a_weight_of_dem_is_warned_of_where_it_was_typed_and_is_not_used(
    typed: list[str], warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """conf/dem sets it for every method."""
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("".join(f"- {entry}\n" for entry in typed))
    config = configure(tmp_path, tmp_path, *typed)
    warn_of_unused_dem(config, tmp_path)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warns
    if warns:
        assert f"{typed[1]}: {typed[0]} has no DEM" in caplog.text
