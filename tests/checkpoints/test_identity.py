"""What makes a run the same run: its content, wherever it lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import configure, tiny_roberta, write_model

from dynarank.checkpoints.identity import differences, identity
from dynarank.errors import UserError
from dynarank.runs.run import run


def rows(path: Path, count: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"a cat sat {'on the mat ' * (row % 5)},{'yn'[row % 2]}" for row in range(count)]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return path


def own(job: Path, hub: Path, *more: str) -> Any:
    given = [
        "task=text_classification",
        f"task.train_file={job / 'train.csv'}",
        f"model.path={job / ('model' if (job / 'model').is_dir() else 'base')}",
        "model.name=tiny",
    ]
    return [*given, *more]


def test_data_and_a_base_that_moved_are_the_same_run(hub_root: Path, tmp_path: Path) -> None:
    for job, base in (("job1", "model"), ("job2", "base")):
        rows(tmp_path / job / "train.csv")
        write_model(tmp_path / job / base, tiny_roberta())
    run_folder = tmp_path / "run"
    run(configure(run_folder, hub_root, *own(tmp_path / "job1", hub_root)))
    shutil.rmtree(tmp_path / "job1")
    (run_folder / "metrics.json").unlink()
    moved = configure(run_folder, hub_root, *own(tmp_path / "job2", hub_root, "resume.path=auto"))
    assert run(moved).resumed_at
    (run_folder / "metrics.json").unlink()
    rows(tmp_path / "job2/train.csv", count=41)
    with pytest.raises(UserError, match=r"is of another run: data was [0-9a-f]+, is [0-9a-f]+"):
        run(configure(run_folder, hub_root, *own(tmp_path / "job2", hub_root, "resume.path=auto")))


def test_images_are_told_by_their_content_and_not_by_their_place(tmp_path: Path) -> None:
    from PIL import Image

    from dynarank.checkpoints.identity import rows_digest
    from dynarank.tasks.image_files import as_images, read_folder

    def digest(folder: Path) -> str:
        read = read_folder("task.train_file", folder, "image", "label")
        return rows_digest({"train": as_images(read, "image", "the folder")})

    for name, colour in (("cat", "red"), ("dog", "blue")):
        (tmp_path / "here" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), colour).save(tmp_path / "here" / name / "1.png")
    before = digest(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert digest(tmp_path / "there") == before
    Image.new("RGB", (4, 4), "green").save(tmp_path / "here/cat/1.png")
    assert digest(tmp_path / "here") != before


def test_other_weights_at_the_same_place_are_another_run(hub_root: Path, tmp_path: Path) -> None:
    rows(tmp_path / "train.csv")
    write_model(tmp_path / "model", tiny_roberta())
    run(configure(tmp_path / "run", hub_root, *own(tmp_path, hub_root)))
    (tmp_path / "run/metrics.json").unlink()
    shutil.rmtree(tmp_path / "model")
    write_model(tmp_path / "model", tiny_roberta(initializer_range=0.5))
    with pytest.raises(UserError, match=r"is of another run: base_weights was"):
        run(configure(tmp_path / "run", hub_root, *own(tmp_path, hub_root, "resume.path=auto")))


def test_a_hubs_model_and_data_are_named(hub_root: Path, tmp_path: Path) -> None:
    known = identity(configure(tmp_path, hub_root))
    assert known["model.path"] == "FacebookAI/roberta-base"
    other = {**known, "model.path": "FacebookAI/roberta-large", "seed": 9}
    fixed, inexact = differences(known, other)
    assert fixed == ["model.path was FacebookAI/roberta-base, is FacebookAI/roberta-large"]
    assert inexact == ["seed was 1, is 9"]
    assert json.loads(json.dumps(known)) == known
