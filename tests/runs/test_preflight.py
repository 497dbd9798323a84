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
    warn_of_unused,
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


def test_float16_of_a_sharded_model_is_refused_before_anything_loads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check_machine(TrainerConfig(precision="16-mixed"))
    with pytest.raises(UserError, match=r"16-mixed: does not work with .* = fsdp.*bf16-mixed"):
        check_machine(TrainerConfig(precision="16-mixed", strategy="fsdp"))


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
    ("typed", "told"),
    [
        (["method=lora", "dem.eta=0.3"], "method=lora has no DEM"),
        (["method=dynarank", "dem=paper"], "method=dynarank has no DEM"),
        (["method=eva", "++budget.warmup=0.3"], "method=eva places its components before training"),
        (["method=full", "budget=r8"], "method=full has no budget"),
        (["method=bitfit", "model.targets=[query]"], "method=bitfit adapts no layers"),
        (["task=xsum", "optimizer.head_lr=1e-3"], "task=xsum has no head of its own"),
        (["optimizer.lr=1e-3", "task.lr=2e-3"], "optimizer.lr=0.001 is given, and comes before it"),
        (["experiment=quickstart_llm", "task.lr=2e-3"], "optimizer.lr=0.01 is given"),
        (["experiment=quickstart_llm", "model.lr_scale=2"], "optimizer.lr=0.01 is given"),
        (["optimizer.lr=1e-3", "++method.lr_scale=2"], "optimizer.lr=0.001 is given"),
        (["trainer.batch_size=4", "task.batch_size=8"], "trainer.batch_size=4 is given"),
        (["trainer.epochs=4", "task.epochs=8"], "trainer.epochs=4 is given"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_was_typed_and_changes_nothing_is_told_in_a_line(
    typed: list[str], told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn(tmp_path, *typed)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{typed[-1]}: {told}" in caplog.text
    assert "so that this changes nothing. " in caplog.text


@pytest.mark.parametrize(
    "typed",
    [
        ["method=lora"],
        ["method=lora", "dem.eta=0"],
        ["method=dora", "dem.eta=0.3"],
        ["method=lora", "experiment=does_it_pay"],  # which gives all methods an interval
        ["method=full", "scale=small"],
        ["method=adalora", "budget.schedule=cubic_adalora"],
        ["method=lora", "budget.unit=parameters"],
        ["method=head", "budget.min_rank=0", "budget.max_rank=null"],
        ["task=cola", "optimizer.head_lr=1e-3"],
        ["task.lr=2e-3", "task.epochs=8", "task.batch_size=4"],
        ["trainer.epochs=2", "optimizer.lr=1e-3"],
        ["~dem.eta"],
    ],
    ids=" ".join,
)
def test_defaults_and_the_projects_own_values_are_no_reason_for_a_warning(
    typed: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn(tmp_path, *typed)
    assert not caplog.records


def warn(folder: Path, *typed: str) -> None:
    """Warn of what was typed for a run and changes nothing, as Hydra has recorded it."""
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {entry}\n" for entry in typed))
    known = [entry for entry in typed if not entry.startswith("~")]
    warn_of_unused(configure(folder, folder, "trainer.epochs=null", *known), folder)


def test_a_run_without_a_record_of_what_was_typed_is_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_unused(configure(tmp_path, tmp_path, "method=lora", "budget.warmup=0.3"), tmp_path)
    assert not caplog.records
