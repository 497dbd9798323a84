"""The model card: true of its run, the same in every folder, and read by the hub's own class."""

from __future__ import annotations

import json
import os
import shlex
import stat
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tiny import configure

from dynarank.runs.run import run

SETTINGS = ("optimizer.lr=0.01", "budget.interval=1", "trainer.epochs=1")


@pytest.fixture(scope="module")
def folders(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of one command in two folders, as Hydra leaves its part."""
    made = []
    for name in ("first", "second"):
        folder = tmp_path_factory.mktemp(name)
        (folder / ".hydra").mkdir()
        overrides = ["task=cola", f"hub.root={hub_root}", f"hydra.run.dir={folder}", "budget=r2"]
        overrides += ["model.path=/home/anna/bert", "task.train_file='/home/anna/my rows.csv'"]
        lines = [f"- {text}\n" for text in overrides]
        (folder / ".hydra/overrides.yaml").write_text("".join(lines))
        run(configure(folder, hub_root, *SETTINGS))
        made.append(folder)
    return made[0], made[1]


def test_the_hubs_class_reads_it_and_its_numbers_are_the_runs(folders: tuple[Path, Path]) -> None:
    folder = folders[0]
    card = ModelCard.load(folder / "adapter/README.md")
    record = json.loads((folder / "metrics.json").read_text())
    assert card.data.base_model == "FacebookAI/roberta-base"
    assert card.data.library_name == "peft"
    (measured,) = card.data.eval_results
    assert measured.metric_type == record["selected"]["metric"]
    assert measured.metric_value == round(record["metrics"]["matthews"], 4)
    text = card.content
    assert f"{record['adapter_parameters']:,} parameters, at its budget" in text
    for name, rank in json.loads((folder / "ranks.json").read_text()).items():
        assert f"| {name} | {rank} |" in text
    command = text.split("dynarank train ")[1].split("\n")[0]
    own = ["model.path=bert", "task.train_file='my rows.csv'"]
    assert shlex.split(command) == ["task=cola", "budget=r2", *own]


def test_it_names_no_folder_and_is_the_same_for_two_runs(folders: tuple[Path, Path]) -> None:
    first, second = (folder / "adapter/README.md" for folder in folders)
    assert first.read_bytes() == second.read_bytes()
    assert str(folders[0]) not in first.read_text()
    assert "anna" not in first.read_text()


def test_how_it_is_loaded_works_as_printed(
    folders: tuple[Path, Path], hub_root: Path, tmp_path: Path
) -> None:
    text = (folders[0] / "adapter/README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    code = code.replace("ADAPTER_DIR", str(folders[0] / "adapter"))
    code = code.replace("FacebookAI/", f"{hub_root}/models/FacebookAI/")
    names: dict[str, object] = {}
    exec(code, names)
    assert type(names["model"]).__name__ == "PeftModelForSequenceClassification"


def test_every_file_of_the_adapter_is_readable_by_others(folders: tuple[Path, Path]) -> None:
    mask = os.umask(0)
    os.umask(mask)
    for path in (folders[0] / "adapter").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path.name
