"""A checkpoint is taken up by the run that wrote it, whole, or by none; one line says why, before
the model loads."""

from __future__ import annotations

import csv
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import configure, glue_rows, newest_checkpoint, write_dataset

from dynarank.checkpoints import callback, identity
from dynarank.checkpoints.storage import (
    DurableIO,
    Manifest,
    checkpoint_path,
    newest_valid,
    read_checkpoint,
    seal,
)
from dynarank.errors import Interrupted, UserError
from dynarank.runs import prepare
from dynarank.runs.run import run
from dynarank.training.module import FineTuning

SETTINGS = [
    "trainer.epochs=3",
    "checkpoint.every_steps=1",
    "budget.interval=1",
    "optimizer.lr=0.01",
]
"""CoLA, 3 steps an epoch; broken off after step 4."""


def break_off(folder: Path, hub: Path, *overrides: str) -> None:
    """Train until a signal comes in step 4."""
    with pytest.MonkeyPatch.context() as patch:
        original = FineTuning.training_step

        def step(self: FineTuning, batch: Any, batch_idx: int) -> Any:
            if self.trainer.global_step == 3:
                signal_now()
            return original(self, batch, batch_idx)

        patch.setattr(FineTuning, "training_step", step)
        with pytest.raises(Interrupted):
            run(configure(folder, hub, *SETTINGS, *overrides))


def signal_now() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def broken_off(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken_off")
    break_off(folder, hub_root)
    return folder


@pytest.fixture
def folder(broken_off: Path, tmp_path: Path) -> Path:
    """A copy of the broken off run's folder."""
    return Path(shutil.copytree(broken_off, tmp_path / "run"))


def go_on(folder: Path, hub: Path, *overrides: str) -> Any:
    return run(configure(folder, hub, *SETTINGS, "resume.path=auto", *overrides))


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "load_pretrained", lambda *_: pytest.fail("loaded the model"))


OTHER_RUNS = [
    ("model=bart_base", "model.name was roberta-base, is bart-base"),
    ("task=sst2", "task.name was cola, is sst2"),
    ("method=lora", "method.name was dora, is lora"),
    ("budget=r4", "budget.target was 2, is 4"),
    ("budget.init=5", "budget.init was None, is 5"),
    ("dem.eta=0", "dem.eta was 0.1, is 0.0"),
    ("trainer.epochs=4", "trainer.epochs was 3, is 4"),
    ("optimizer.head_lr=0.1", "optimizer.head_lr was None, is 0.1"),
    ("trainer.max_steps=5", "trainer.max_steps was None, is 5"),
    ("trainer.batch_size=8", "trainer.batch_size was 16, is 8"),
    ("trainer.accumulate=2", "trainer.accumulate was 1, is 2"),
]


@pytest.mark.parametrize(("override", "said"), OTHER_RUNS)
@pytest.mark.parametrize("allowed", ["false", "true"])
def test_another_runs_checkpoint_is_refused(
    override: str, said: str, allowed: str, folder: Path, hub_root: Path, unloaded: None
) -> None:
    with pytest.raises(
        UserError,
        match=rf"^\S*step-00000004\.ckpt: is of another run: {said}.*Give its settings, or anoth",
    ):
        go_on(folder, hub_root, override, f"resume.allow_inexact={allowed}")


def test_changed_data_is_refused(
    folder: Path, hub_root: Path, tmp_path: Path, unloaded: None
) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "models").symlink_to(hub_root / "models")
    rows = glue_rows("cola", 40, 0)
    rows["label"][17] = 1 - rows["label"][17]
    tables = {"train": rows, "validation": glue_rows("cola", 18, 7)}
    write_dataset(tmp_path / "hub/datasets/nyu-mll/glue", "cola", tables)
    with pytest.raises(
        UserError, match=r"is of another run: data was [0-9a-f]{16}, is [0-9a-f]{16}\. "
    ):
        go_on(folder, tmp_path / "hub")


def test_what_would_make_it_inexact_is_refused(
    folder: Path, hub_root: Path, unloaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    remedy = r"Restore that, or accept it with resume\.allow_inexact=true$"
    for override, said in (
        ("seed=2", "seed was 1, is 2"),
        ("optimizer.lr=0.02", "optimizer.lr was 0.01, is 0.02"),
    ):
        with pytest.raises(
            UserError, match=rf"would not go on exactly as it began: {said}\. {remedy}"
        ):
            go_on(folder, hub_root, override)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    with pytest.raises(UserError, match=rf"threads was {threads}, is {threads + 1}\. {remedy}"):
        go_on(folder, hub_root)
    monkeypatch.undo()
    versions = identity.package_versions()
    monkeypatch.setattr(identity, "package_versions", lambda: {**versions, "torch": "9.9"})
    with pytest.raises(UserError, match=rf"versions\.torch was .*, is 9\.9\. {remedy}"):
        go_on(folder, hub_root)


def test_what_was_accepted_stands_in_the_record(folder: Path, hub_root: Path) -> None:
    results = go_on(folder, hub_root, "optimizer.lr=0.02", "resume.allow_inexact=true")
    assert results.inexact_resume == ["step 4: optimizer.lr was 0.01, is 0.02"]
    assert '"step 4: optimizer.lr was 0.01, is 0.02"' in (folder / "metrics.json").read_text()
    assert results.resumed_at == [4]


def test_what_was_accepted_has_an_effect(folder: Path, hub_root: Path) -> None:
    changed = ["optimizer.lr=0.02", "optimizer.weight_decay=0.5", "resume.allow_inexact=true"]
    go_on(folder, hub_root, *changed)
    lines = (folder / "metrics.csv").read_text().splitlines()
    rates = {row["step"]: row["train/lr"] for row in csv.DictReader(lines) if row["train/lr"]}
    # Of nine steps none warms up, and the rate falls by a ninth of its peak at each.
    expected = {"4": 0.01 * 6 / 9, "5": 0.02 * 5 / 9, "8": 0.02 * 2 / 9, "9": 0.02 / 9}
    for step, rate in expected.items():
        assert float(rates[step]) == pytest.approx(rate)
    groups = newest_checkpoint(folder)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0]
    assert {group["initial_lr"] for group in groups} == {0.02}


def test_a_checkpoint_from_an_address_is_refused(
    tmp_path: Path, hub_root: Path, unloaded: None
) -> None:
    for address in ("https://example.org/a.ckpt", "s3://bucket/run"):
        with pytest.raises(
            UserError, match=rf"resume = {address}: checkpoints are read from disk only"
        ):
            run(configure(tmp_path, hub_root, f"resume.path={address}"))
    for path, said in (
        (tmp_path / "gone", "no such file or folder"),
        (tmp_path, "there is no checkpoint in"),
    ):
        with pytest.raises(UserError, match=rf"resume = {path}: .*{said}"):
            run(configure(tmp_path / "new", hub_root, f"resume.path={path}"))


def test_an_unfinished_run_is_not_lost_by_chance(
    folder: Path, hub_root: Path, tmp_path: Path, unloaded: None
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    for overrides in ([], [f"resume.path={other}"]):
        with pytest.raises(
            UserError,
            match=r"holds an unfinished run, saved at step 4\. Go on with resume=auto, or.*never",
        ):
            run(configure(folder, hub_root, *SETTINGS, *overrides))


Change = Callable[[dict[str, Any]], Any]
QUERY = "model.roberta.encoder.layer.0.attention.self.query.lora_A"
FORGED: list[tuple[str, Change, str]] = [
    (
        "no scores",
        lambda c: [c["callbacks"].pop(k) for k in list(c["callbacks"]) if "Rank" in k],
        "lacks the allocator's sc",
    ),
    ("half a state", lambda c: allocator(c).pop("ema"), "the allocator's saved state lacks ema"),
    (
        "fewer scores",
        lambda c: allocator(c).update(ema=torch.zeros(3)),
        r"saved scores are \[3\], not \[36\]",
    ),
    ("no optimizer", lambda c: c.pop("optimizer_states"), "lacks optimizer_states"),
    ("no position", lambda c: c.pop("TaskData"), "lacks TaskData"),
    (
        "a name less",
        lambda c: c["state_dict"].pop(QUERY),
        rf"{QUERY} was not there, is \[3, 16\] \(1 differ\)",
    ),
    (
        "a name more",
        lambda c: c["state_dict"].update(x=torch.zeros(2)),
        r"x was \[2\], is not there",
    ),
    (
        "a shape",
        lambda c: c["state_dict"].update({QUERY: torch.zeros(4, 16)}),
        rf"{QUERY} was \[4, 16\], is \[3, 16\]",
    ),
]


def allocator(content: dict[str, Any]) -> Any:
    return next(state for name, state in content["callbacks"].items() if "Rank" in name)[
        "allocator"
    ]


@pytest.mark.parametrize(("name", "change", "said"), FORGED, ids=[name for name, _, _ in FORGED])
def test_a_checkpoint_that_lacks_something_is_never_filled_up(
    name: str, change: Change, said: str, folder: Path, hub_root: Path
) -> None:
    path, manifest, _ = newest_valid(folder / "checkpoints")
    assert path is not None
    assert manifest is not None
    content = read_checkpoint(path)
    change(content)
    DurableIO().save_checkpoint(content, path)
    seal(path, replace(manifest))
    with pytest.raises(UserError, match=said):
        go_on(folder, hub_root)
    assert not (folder / "metrics.json").exists()


def test_a_run_stopped_before_its_first_step_leaves_the_checkpoint_it_came_from_alone(
    folder: Path, hub_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written anew, it would not be whole for a moment, and it may be the only one."""
    path = checkpoint_path(folder / "checkpoints", 4)
    before = path.stat().st_ino, path.stat().st_mtime_ns
    original = callback.restore_loop_position

    def restore(trainer: Any, position: Any) -> None:
        original(trainer, position)
        signal_now()

    monkeypatch.setattr(callback, "restore_loop_position", restore)
    with pytest.raises(Interrupted, match="saved: step 4"):
        go_on(folder, hub_root, "checkpoint.keep=1")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    assert newest_valid(folder / "checkpoints")[0] == path
    monkeypatch.undo()
    assert go_on(folder, hub_root).resumed_at == [4]


def test_a_run_goes_on_in_another_folder_with_its_best_checkpoint(
    folder: Path, hub_root: Path, tmp_path: Path
) -> None:
    go_on(folder, hub_root)
    step, last = 9, newest_valid(folder / "checkpoints")[1]
    assert last is not None
    fork, at = tmp_path / "fork", checkpoint_path(folder / "checkpoints", step)
    best = {"score": 2.0, "step": step, "epoch": 3}  # better than any score can be
    seal(at, Manifest(**{**asdict(last), "best": best}))
    shutil.copytree(folder / "checkpoints", tmp_path / "elsewhere")
    results = run(
        configure(fork, hub_root, *SETTINGS, f"resume.path={tmp_path / 'elsewhere' / at.name}")
    )
    assert results.selected["step"] == step
    assert (fork / "checkpoints" / at.name).is_file()
    assert (fork / "adapter/adapter_model.safetensors").read_bytes() == (
        folder / "adapter/adapter_model.safetensors"
    ).read_bytes()


def test_a_run_on_files_of_ones_own_goes_on(hub_root: Path, tmp_path: Path) -> None:
    """The classes are known only once the data is read: that is no difference."""
    rows = "".join(
        f"a cat sat {'on the mat ' * (row % 5)},{'yes' if row % 2 else 'no'}\n" for row in range(48)
    )
    (tmp_path / "own.csv").write_text("text,label\n" + rows)
    own = ["task=text_classification", f"task.train_file={tmp_path / 'own.csv'}"]
    break_off(tmp_path / "run", hub_root, *own)
    assert go_on(tmp_path / "run", hub_root, *own).resumed_at == [4]
